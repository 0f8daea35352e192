"""Calling tools over real HTTP and a real nats-server: the answer, or a text with which the model can go on."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from bench import instant
from meshag.api import sessions
from meshag.api.service import WORKER
from meshag.bus.connection import Bus
from meshag.connectors import tools as calling
from meshag.connectors.tools import ANSWER_BYTES, CUT, Tools
from meshag.embedded.mesh import Mesh
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import BusError, ConfigError
from meshag.sessions.tools import ToolConfig
from meshes import call as exchange
from meshes import create

pytestmark = pytest.mark.integration

SECRET = "sk-very-secret"
RESULTS = ("ok", "invalid_arguments", "unknown", "timeout", "refused", "failed", "limit")
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {}}, "required": ["city"]}

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Theatre:
    """A tool's HTTP server: keeps what it got, answers what it is told to, one answer a request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: list[Answer | web.Response] = []
        self.cancelled = asyncio.Event()

    async def __aenter__(self) -> "Theatre":
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kept = {"method": request.method, "path": request.raw_path, "headers": request.headers}
        self.requests.append({**kept, "body": await request.text()})
        answer = self.answers.pop(0) if self.answers else web.json_response({"ok": 1})
        return answer if isinstance(answer, web.Response) else await answer(request)


@pytest.fixture
async def theatre() -> AsyncIterator[Theatre]:
    async with Theatre() as theatre:
        yield theatre


@pytest.fixture
async def tools(theatre: Theatre) -> AsyncIterator[Tools]:
    tools = Tools(None, theatre.host, environment={"MESHAG_TOOL_KEY": SECRET})  # type: ignore[arg-type]
    yield tools
    await tools.aclose()


def over_http(theatre: Theatre, path: str = "/shows", method: str = "POST", **more: Any) -> ToolConfig:
    place = {"url": f"http://{theatre.host}{path}", "method": method, "headers": more.pop("headers", {})}
    return ToolConfig.model_validate({"name": "t", "description": "d", "parameters": CITY, "http": place, **more})


def over_nats(subject: str = "tools.weather", **more: Any) -> ToolConfig:
    made = {"name": "t", "description": "d", "parameters": CITY, "nats": {"subject": subject}}
    return ToolConfig.model_validate({**made, **more})


def counted() -> dict[str, float]:
    return {r: REGISTRY.get_sample_value("meshag_tool_calls_total", {"result": r}) or 0 for r in RESULTS}


async def call(tools: Tools, tool: ToolConfig, arguments: str = '{"city": "Paris"}', key: str = "s/3/0") -> str:
    """Its answer; exactly one call is counted."""
    before = sum(counted().values())
    answer = await tools.call(tool, arguments, key=key, session="s", turn=3)
    assert sum(counted().values()) == before + 1
    assert len(answer.encode()) <= ANSWER_BYTES
    return answer


async def dropped(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


# -- HTTP -------------------------------------------------------------------------------------------------------------


async def test_what_a_tool_gets_by_post(theatre: Theatre, tools: Tools) -> None:
    tool = over_http(theatre, "/now?v=1", headers={"Authorization": "Bearer ${MESHAG_TOOL_KEY}", "X-Tenant": "north"})
    assert await call(tools, tool, '{"city": "Zürich", "days": [1, {"a": null}]}') == '{"ok": 1}'
    (got,) = theatre.requests
    assert (got["method"], got["path"]) == ("POST", "/now?v=1")
    assert json.loads(got["body"]) == {"city": "Zürich", "days": [1, {"a": None}]}
    wanted = {
        "Content-Type": "application/json",
        "Idempotency-Key": "s/3/0",
        "X-MeshAG-Session": "s",
        "X-MeshAG-Turn": "3",
        "Authorization": f"Bearer {SECRET}",
        "X-Tenant": "north",
        "Accept-Encoding": "identity",
    }
    assert {name: got["headers"][name] for name in wanted} == wanted


async def test_what_a_tool_gets_by_get(theatre: Theatre, tools: Tools) -> None:
    tool = over_http(theatre, "/a%2Fb?city=Rome&k", "GET")
    given = {"city": "Paris", "days": ["a&b", 2, True], "more": {"x": "é"}, "n": None, "one": "1+1 =?#"}
    await call(tools, tool, json.dumps(given))
    (got,) = theatre.requests
    assert got["method"] == "GET"
    assert got["body"] == ""
    assert "Content-Type" not in got["headers"]
    path, _, query = got["path"].partition("?")
    assert path == "/a%2Fb"
    assert "Paris" not in query
    assert query.startswith("city=Rome&k")
    assert "days=a%26b&days=2&days=true" in query
    assert "n=null" in query
    assert "one=1%2B1+%3D?%23" in query


async def test_a_query_that_is_too_long_is_not_sent(theatre: Theatre, tools: Tools) -> None:
    answer = json.loads(await call(tools, over_http(theatre, method="GET"), json.dumps({"city": "x" * 9_000})))
    assert answer == {"error": "invalid_arguments", "problems": ["too long for a query"]}
    assert theatre.requests == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (web.Response(body=b' {"a": 1.10, "b": [] }\n'), '{"a": 1.10, "b": [] }'),
        (web.Response(body=b"\xef\xbb\xbf[1]"), "[1]"),
        (web.Response(body=b"null"), "null"),
        (web.Response(text='it is "warm" in Zürich'), '"it is \\"warm\\" in Zürich"'),
        (web.Response(body=b"\xff\xfe"), '"\ufffd\ufffd"'),
        (web.Response(body=b"NaN"), '"NaN"'),
        (web.Response(body=b"[" * 9000), json.dumps("[" * 9000)),
        (web.Response(status=204), '{"ok": true}'),
        (web.Response(status=201, body=b"  "), '{"ok": true}'),
    ],
    ids=range(9),
)
async def test_what_the_model_gets(theatre: Theatre, tools: Tools, answer: web.Response, told: str) -> None:
    theatre.answers = [answer]
    assert await call(tools, over_http(theatre)) == told


async def test_long_answers_are_cut_and_not_read_to_their_end(theatre: Theatre, tools: Tools) -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write("é".encode() * 30_000)
        finally:
            theatre.cancelled.set()

    theatre.answers = [endless, web.json_response("y" * ANSWER_BYTES), web.json_response("\n" * (ANSWER_BYTES - 100))]
    tool = over_http(theatre)
    for _ in range(3):
        answer = await call(tools, tool)
        assert len(answer.encode()) > ANSWER_BYTES - 50
        assert answer.endswith(CUT) or answer.endswith('"')
    async with asyncio.timeout(5):
        await theatre.cancelled.wait()


@pytest.mark.parametrize("status", [300, 301, 304, 400, 401, 404, 409, 418, 429, 500, 501, 505])
async def test_an_error_is_told_by_its_status_alone(theatre: Theatre, tools: Tools, status: int) -> None:
    theatre.answers = [web.Response(status=status, text="" if status == 304 else f"stack trace with {SECRET}")]
    answer = json.loads(await call(tools, over_http(theatre)))
    assert answer == {"error": "tool_redirects" if status < 400 else "tool_failed", "status": status}
    assert len(theatre.requests) == 1


@pytest.mark.parametrize("failure", [502, 503, 504, "dropped"])
async def test_what_may_be_over_in_a_moment_is_called_once_more(theatre: Theatre, tools: Tools, failure: Any) -> None:
    failing: Any = dropped if failure == "dropped" else web.Response(status=failure)
    theatre.answers = [failing]
    assert await call(tools, over_http(theatre, headers={"X-A": "${MESHAG_TOOL_KEY}"})) == '{"ok": 1}'
    first, second = theatre.requests
    assert first["headers"]["Idempotency-Key"] == second["headers"]["Idempotency-Key"] == "s/3/0"
    assert first["body"] == second["body"]


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("failure", [502, 503, 504, "dropped"])
async def test_and_not_a_third_time(theatre: Theatre, tools: Tools, failure: Any, method: str) -> None:
    theatre.answers = [dropped if failure == "dropped" else web.Response(status=failure) for _ in range(3)]
    answer = json.loads(await call(tools, over_http(theatre, method=method)))
    wanted = {"error": "tool_unavailable"} if failure == "dropped" else {"error": "tool_failed", "status": failure}
    assert answer == wanted
    assert len(theatre.requests) == 2


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    alone = Tools(None, "127.0.0.1")  # type: ignore[arg-type]
    place = {"url": f"http://127.0.0.1:{port}/"}
    tool = ToolConfig.model_validate({"name": "t", "description": "d", "parameters": CITY, "http": place})
    assert json.loads(await call(alone, tool)) == {"error": "tool_unavailable"}
    await alone.aclose()


async def test_a_tool_that_is_too_slow(theatre: Theatre, tools: Tools) -> None:
    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    before = counted()
    theatre.answers = [slow]
    async with asyncio.timeout(5):
        answer = json.loads(await call(tools, over_http(theatre, deadline_ms=150)))
    assert answer == {"error": "tool_timeout"}
    assert counted() == {**before, "timeout": before["timeout"] + 1}


async def test_a_tool_that_stops_in_its_answer(theatre: Theatre, tools: Tools) -> None:
    async def stops(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b"{")
        await asyncio.sleep(30)
        return answer

    theatre.answers = [stops]
    assert json.loads(await call(tools, over_http(theatre, deadline_ms=150))) == {"error": "tool_timeout"}


async def test_a_second_try_stays_inside_the_deadline(theatre: Theatre, tools: Tools) -> None:
    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    theatre.answers = [web.Response(status=503), slow]
    async with asyncio.timeout(5):
        answer = json.loads(await call(tools, over_http(theatre, deadline_ms=400)))
    assert answer == {"error": "tool_timeout"}
    assert len(theatre.requests) == 2


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", b"", b"\x00" * 99]
)
async def test_what_is_no_answer(raw: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tools = Tools(None, "127.0.0.1")  # type: ignore[arg-type]
    place = {"url": f"http://127.0.0.1:{port}/"}
    tool = ToolConfig.model_validate({"name": "t", "description": "d", "parameters": CITY, "http": place})
    answer = json.loads(await call(tools, tool))
    assert answer in ({"error": "tool_garbage"}, {"error": "tool_unavailable"})
    await tools.aclose()
    server.close()
    await server.wait_closed()


async def test_compressed_answers_are_not_unpacked(theatre: Theatre, tools: Tools) -> None:
    async def bomb(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.Response(body=b"0" * 50_000_000)
        answer.enable_compression(web.ContentCoding.gzip)  # whatever was asked for
        return answer

    theatre.answers = [web.Response(body=b"x", headers={"Content-Encoding": "gzip"}), bomb]
    for _ in range(2):
        assert json.loads(await call(tools, over_http(theatre))) == {"error": "tool_garbage"}


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"city": 5}', "city: 5 is not of type 'string'"),
        ("", "'city' is a required property"),
        ("{}", "'city' is a required property"),
        ('{"city": "Paris"', "not JSON"),
        ('{"city": "Paris"} {}', "not JSON"),
        ("[]", "must be a JSON object"),
        ('"Paris"', "must be a JSON object"),
        ('{"city": "a", "city": "b"}', "city: given twice"),
        ('{"city": NaN}', "NaN is not a JSON number"),
        ('{"city": "\\ud800"}', "holds a character no text may hold"),
        ('{"city": "\ud800"}', "holds a character no text may hold"),
        ('{"city": "' + "x" * 17_000 + '"}', "longer than 16384 bytes"),
        ('{"city": ' + "[" * 17 + "]" * 17 + "}", "nested deeper"),
    ],
    ids=range(13),
)
async def test_arguments_that_are_not_what_the_tool_takes(
    theatre: Theatre, tools: Tools, arguments: str, problem: str
) -> None:
    before = counted()
    answer = json.loads(await call(tools, over_http(theatre), arguments))
    assert answer["error"] == "invalid_arguments"
    assert any(problem in said for said in answer["problems"]), answer
    assert counted()["invalid_arguments"] == before["invalid_arguments"] + 1
    assert theatre.requests == []


async def test_arguments_are_checked_beside_the_event_loop(
    theatre: Theatre, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library alone takes a tenth of a second to load, a hostile schema as long to check."""
    threads: list[int] = []
    monkeypatch.setattr(calling, "value_problems", lambda *_: threads.append(threading.get_ident()) or [])
    await call(tools, over_http(theatre))
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_no_arguments_are_an_empty_object(theatre: Theatre, tools: Tools) -> None:
    await call(tools, over_http(theatre, parameters={"type": "object"}), "")
    assert theatre.requests[0]["body"] == "{}"


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [None, "", "a\r\nX-Evil: 1", "a\x00", "é"])
async def test_a_variable_that_cannot_be_sent(
    theatre: Theatre, held: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {} if held is None else {"MESHAG_TOOL_KEY": held}
    tools = Tools(None, theatre.host, environment=environment)  # type: ignore[arg-type]
    answer = await call(tools, over_http(theatre, headers={"X-Key": "${MESHAG_TOOL_KEY}"}))
    assert json.loads(answer) == {"error": "secret_missing"}
    assert theatre.requests == []
    assert "MESHAG_TOOL_KEY is not set" in capsys.readouterr().out
    await tools.aclose()


async def test_nothing_of_the_call_is_logged(
    theatre: Theatre, tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    theatre.answers = [web.Response(status=500, text="what the tool said")]
    tool = over_http(theatre, "/path?hush=1", headers={"X-Key": "${MESHAG_TOOL_KEY}"})
    await call(tools, tool, '{"city": "what the caller said"}')
    await call(tools, tool, '{"city": ["what the caller said"]}')
    out = capsys.readouterr()
    logged = out.out + out.err
    assert "tool_failed" in logged
    assert not [word for word in (SECRET, "what the", "hush") if word in logged]


async def test_a_key_that_is_no_header_is_sent_as_its_hash(theatre: Theatre, tools: Tools) -> None:
    for key in ("a\r\nX-Evil: 1", "é", "", "x" * 300):
        await call(tools, over_http(theatre), key=key)
    sent = [request["headers"]["Idempotency-Key"] for request in theatre.requests]
    assert [len(key) for key in sent] == [64] * 4
    assert len(set(sent)) == 4


# -- cancellation -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_call_closes_its_connection(theatre: Theatre, tools: Tools) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        while await reader.read(1000):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    tools = Tools(None, host)  # type: ignore[arg-type]
    place = {"url": f"http://{host}/"}
    tool = ToolConfig.model_validate({"name": "t", "description": "d", "parameters": CITY, "http": place})
    before = counted()
    task = asyncio.create_task(tools.call(tool, '{"city": "x"}', key="k", session="s", turn=1))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await gone.wait()
    assert counted() == before
    await tools.aclose()
    server.close()
    await server.wait_closed()


async def test_many_calls_at_once_keep_their_answers(theatre: Theatre, tools: Tools) -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        return web.Response(text=theatre_body(request))

    def theatre_body(request: web.BaseRequest) -> str:
        key = request.headers["Idempotency-Key"]
        return next(got["body"] for got in theatre.requests if got["headers"]["Idempotency-Key"] == key)

    theatre.answers = [echo] * 50
    tool = over_http(theatre)
    asked = [tools.call(tool, json.dumps({"city": str(i)}), key=f"k{i}", session="s", turn=1) for i in range(50)]
    assert [json.loads(answer)["city"] for answer in await asyncio.gather(*asked)] == [str(i) for i in range(50)]


# -- NATS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def bus(servers: EmbeddedServers) -> AsyncIterator[Bus]:
    bus = await Bus.connect(servers.nats_url, name="test")
    yield bus
    await bus.close()


async def serve(bus: Bus, subject: str, answer: bytes, got: list[tuple[bytes, dict[str, str]]]) -> Any:
    """Answers once, keeping data and headers; where to answer is known to the client library alone."""

    async def respond(message: Any) -> None:
        got.append((message.data, dict(message.headers or {})))
        await message.respond(answer)

    subscription = await bus._client.subscribe(subject, cb=respond)
    await bus.round_trip_ms()
    return subscription


async def test_a_tool_on_nats(bus: Bus) -> None:
    got: list[tuple[bytes, dict[str, str]]] = []
    subscription = await serve(bus, "tools.weather", b'{"c": 21}', got)
    assert await call(Tools(bus), over_nats()) == '{"c": 21}'
    ((data, headers),) = got
    assert json.loads(data) == {"city": "Paris"}
    assert headers == {"Idempotency-Key": "s/3/0", "X-MeshAG-Session": "s", "X-MeshAG-Turn": "3"}
    await subscription.unsubscribe()


async def test_a_long_answer_on_nats_is_cut(bus: Bus) -> None:
    subscription = await serve(bus, "tools.long", b'"' + b"x" * 100_000 + b'"', [])
    assert (await call(Tools(bus), over_nats("tools.long"))).endswith(CUT)
    await subscription.unsubscribe()


async def test_nobody_listens(bus: Bus) -> None:
    async with asyncio.timeout(3):
        answer = json.loads(await call(Tools(bus), over_nats("tools.nobody")))
    assert answer == {"error": "tool_unavailable"}


async def test_somebody_listens_at_the_second_try(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PAUSE_S", 0.3)
    task = asyncio.create_task(call(Tools(bus), over_nats("tools.late")))
    await asyncio.sleep(0.1)
    subscription = await serve(bus, "tools.late", b"1", [])
    assert await task == "1"
    await subscription.unsubscribe()


async def test_a_tool_on_nats_that_never_answers(bus: Bus) -> None:
    subscription = await bus.subscribe("tools.mute", lambda _: None)
    pending = len(bus._client._resp_map)
    answer = json.loads(await call(Tools(bus), over_nats("tools.mute", deadline_ms=150)))
    assert answer == {"error": "tool_timeout"}
    await asyncio.sleep(0)
    assert len(bus._client._resp_map) == pending
    await subscription.close()


async def test_nats_that_fails() -> None:
    class Broken:
        async def request(self, *_: object, **__: object) -> bytes:
            raise BusError("NATS takes no more messages")

    class Worse:
        async def request(self, *_: object, **__: object) -> bytes:
            raise ZeroDivisionError

    assert json.loads(await call(Tools(Broken()), over_nats())) == {"error": "tool_unavailable"}
    assert json.loads(await call(Tools(Worse()), over_nats())) == {"error": "tool_failed"}


# -- when a session is created ----------------------------------------------------------------------------------------


def test_a_session_whose_tools_could_not_be_called_is_refused(mesh: Mesh) -> None:
    there = create(mesh)["session_id"]
    tool = {"name": "t", "description": "d", "http": {"url": "http://10.0.0.1/"}}
    config = {**instant.config(), "tools": [tool]}
    for method, path in (("POST", "/sessions/with-config"), ("PATCH", f"/sessions/{there}/config")):
        status, told = exchange(mesh, method, path, {"config": config})
        assert status == 422, told
        found = {problem["path"]: problem["fix"] for problem in told["problems"]}
        assert list(found) == ["config.tools.0.http.url", "config.connectors.llm"]
        assert "MESHAG_TOOL_HOSTS" in found["config.tools.0.http.url"]
        assert "can call functions" in found["config.connectors.llm"]
    assert exchange(mesh, "GET", f"/sessions/{there}")[1]["config"]["tools"] == []


@pytest.mark.parametrize("reader", ["parse_request", "patched"])
async def test_configurations_are_checked_beside_the_event_loop(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def read(*_: object) -> None:
        threads.append(threading.get_ident())
        raise ConfigError("enough")

    monkeypatch.setattr(sessions, reader, read)
    request = MagicMock(match_info={"id": "a" * 26}, headers={}, read=AsyncMock(return_value=b"{}"))
    request.app = {WORKER: MagicMock(store=AsyncMock())}
    request.get.return_value = None
    with pytest.raises(ConfigError, match="enough"):
        await (sessions.create if reader == "parse_request" else sessions.change)(request)
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def test_a_secret_in_an_address_is_neither_kept_nor_repeated(mesh: Mesh) -> None:
    there = create(mesh)["session_id"]
    for url in ("https://me:hush-9@a.test/", "https://a.test/?api_key=hush-9"):
        config = {**instant.config(), "tools": [{"name": "t", "description": "d", "http": {"url": url}}]}
        for method, path in (("POST", "/sessions/with-config"), ("PATCH", f"/sessions/{there}/config")):
            status, told = exchange(mesh, method, path, {"config": config})
            assert (status, told["code"], told["path"]) == (422, "tool_secret", "config.tools.0.http.url")
            assert "header" in told["fix"]
            assert "hush" not in json.dumps(told)
    assert "hush" not in json.dumps(exchange(mesh, "GET", f"/sessions/{there}")[1])
    assert not [path.name for path in mesh.log_dir.glob("*.log") if "hush" in path.read_text()]
