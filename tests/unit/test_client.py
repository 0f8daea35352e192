"""The client, against a service that answers as it is told: what is sent, what is read, what is asked again."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import meshag
from meshag.client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Unavailable,
    Unreachable,
)
from meshag.errors import ConfigError, MeshError

pytestmark = pytest.mark.unit

CREATED = {"session_id": "a" * 26, "room_url": "ws://x/stream", "token": "t", "config_stored": True}
KEY = f"mesh_{'a' * 13}_{'b' * 52}"

Answer = tuple[int, dict[str, str], Any] | None
"""Status, headers, JSON or bytes; None: the connection is cut."""


class Service:
    """Answers what it is told to, the last thing over and over, and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [(200, {}, {})]
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.asked.append((self.command, self.path, dict(self.headers), body))
                answer = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, told = answer
                raw = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MESHAG_URL", "MESHAG_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def problem(status: int, code: str, **more: Any) -> Answer:
    body = {"type": f"urn:meshag:{code}", "title": "No.", "status": status, "code": code, **more}
    return status, {"Content-Type": "application/problem+json"}, body


def both(url: str, ask: Callable[[Any], Any], **options: Any) -> list[Any]:
    """What the blocking client and the other one make of the same call: a value, or the error."""
    found: list[Any] = []
    try:
        found.append(ask(Client(url, **options)))
    except MeshError as error:
        found.append(error)

    async def run() -> Any:
        async with AsyncClient(url, **options) as mesh:
            return await ask(mesh)

    try:
        found.append(asyncio.run(run()))
    except MeshError as error:
        found.append(error)
    return found


# -- where, and who ---------------------------------------------------------------------------------------------------


def test_address_and_key_come_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().url == "http://localhost:8084"
    monkeypatch.setenv("MESHAG_URL", f"{service.url}/")
    monkeypatch.setenv("MESHAG_API_KEY", KEY)
    service.answers = [(201, {}, CREATED)]
    assert Client().create().session_id == "a" * 26
    method, path, headers, body = service.asked[0]
    assert (method, path, json.loads(body)) == ("POST", "/sessions/with-config", {"config": {}})
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("url", ["localhost:8084", "ftp://x", "http://", "/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address"):
        Client(url)


def test_what_is_no_key_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        Client(api_key="sk-1234")
    assert "1234" not in str(refused.value)


def test_the_package_is_there_at_once() -> None:
    code = "import sys, meshag; print(sorted(n for n in sys.modules if n in ('aiohttp', 'pydantic', 'msgspec')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    code = "import sys, meshag; meshag.Client; print('aiohttp' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
    assert meshag.Client is Client
    assert meshag.AsyncClient is AsyncClient
    with pytest.raises(AttributeError):
        meshag.Nothing  # noqa: B018


async def test_the_blocking_client_refuses_to_hold_up_a_loop(service: Service) -> None:
    with pytest.raises(RuntimeError, match="AsyncClient"):
        Client(service.url).show("x")
    assert service.asked == []
    await asyncio.to_thread(Client(service.url).end, "x")
    assert len(service.asked) == 1


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, NotAuthenticated),
        (403, NotAllowed),
        (404, NotFound),
        (406, InvalidRequest),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
    ],
)
def test_errors_are_told_apart(service: Service, status: int, kind: type[ApiError]) -> None:
    service.answers = [problem(status, "some_code", request_id="r1")]
    for error in both(service.url, lambda mesh: mesh.show("x"), retry=False):
        assert type(error) is kind
        assert (error.status, error.code, error.request_id) == (status, "some_code", "r1")
    assert len(service.asked) == 2


def test_an_error_says_what_to_do(service: Service) -> None:
    wrong = [{"path": "config.x", "message": "there is no such field", "fix": "remove it", "code": "field_unknown"}]
    service.answers = [problem(422, "field_unknown", path="config.x", fix="remove it", problems=wrong)]
    for error in both(service.url, lambda mesh: mesh.create({"config": {"x": 1}})):
        assert (error.path, error.fix, error.problems[0].code) == ("config.x", "remove it", "field_unknown")
        assert str(error) == "No. (422 field_unknown)\n  config.x: there is no such field\n    fix: remove it"


@pytest.mark.parametrize("answer", [(200, {}, b"<html>"), (404, {}, b"<html>"), (200, {}, {"other": 1})])
def test_somebody_else_answers(service: Service, answer: Answer) -> None:
    service.answers = [answer]
    for error in both(service.url, lambda mesh: mesh.show("x"), timeout_s=2):
        assert type(error) is Unreachable
        assert "not as MeshAG does" in str(error)
    assert len(service.asked) == 2  # it would be the same again


def test_nobody_answers(service: Service) -> None:
    url = service.url
    service.server.server_close()
    for error in both(url, lambda mesh: mesh.show("x"), retry=False):
        assert type(error) is Unreachable
        assert "MESHAG_URL" in str(error)
        assert error.retryable


# -- asked again ------------------------------------------------------------------------------------------------------


def test_what_had_no_room_is_asked_again_when_the_service_says(service: Service) -> None:
    full = problem(503, "no_capacity")
    assert full is not None
    service.answers = [(503, {"Retry-After": "1"}, full[2]), (201, {}, CREATED)]
    began = time.monotonic()
    assert Client(service.url).create().token == "t"
    assert time.monotonic() - began >= 1
    assert [one[1] for one in service.asked] == ["/sessions/with-config"] * 2


def test_a_creation_whose_answer_was_lost_is_sent_again_under_its_key(service: Service) -> None:
    service.answers = [None, (201, {}, CREATED)]
    assert Client(service.url).create().token == "t"
    keys = [one[2]["Idempotency-Key"] for one in service.asked]
    assert keys[0] == keys[1]
    assert len(keys[0]) >= 20
    Client(service.url).create(idempotency_key="mine")
    assert service.asked[-1][2]["Idempotency-Key"] == "mine"


async def test_the_other_client_does_it_too(service: Service) -> None:
    service.answers = [problem(409, "in_progress"), None, problem(429, "rate_limited"), (201, {}, CREATED)]
    async with AsyncClient(service.url) as mesh:
        assert (await mesh.create()).token == "t"
    assert len({one[2]["Idempotency-Key"] for one in service.asked}) == 1


def test_what_may_have_been_said_is_not_said_again(service: Service) -> None:
    service.answers = [None]
    for error in both(service.url, lambda mesh: mesh.say("x", "Hello."), timeout_s=5):
        assert type(error) is Unreachable
    assert len(service.asked) == 2
    service.answers = [problem(503, "bus_unavailable"), (202, {}, {"session_id": "x", "accepted": True})]
    Client(service.url).say("x", "Hello.")  # it certainly was not
    assert len(service.asked) == 4


def test_it_ends_with_the_deadline(service: Service) -> None:
    service.answers = [problem(503, "no_capacity")]
    began = time.monotonic()
    for error in both(service.url, lambda mesh: mesh.show("x"), timeout_s=1):
        assert (type(error), error.code) == (Unavailable, "no_capacity")
    assert time.monotonic() - began < 10
    assert len(service.asked) >= 4
    full = problem(429, "rate_limited")
    assert full is not None
    service.answers, before = [(429, {"Retry-After": "60"}, full[2])], len(service.asked)
    for error in both(service.url, lambda mesh: mesh.show("x"), timeout_s=5):
        assert error.retry_after_s == 60
    assert len(service.asked) == before + 2  # it is over before that


# -- pages ------------------------------------------------------------------------------------------------------------


def summary(name: str) -> dict[str, Any]:
    told = {"session_name": name, "status": "live", "created_at_s": 1.0, "pipeline": "p", "of_a_newer_version": 1}
    return {"session_id": name * 26, **told}


async def test_a_list_goes_on_to_its_end(service: Service) -> None:
    pages: list[Answer] = [
        (200, {}, {"sessions": [summary("a"), summary("b")], "next_cursor": "c/1="}),
        (200, {}, {"sessions": [summary("c")], "next_cursor": None}),
    ]
    service.answers = [*pages, *pages]
    found = await asyncio.to_thread(
        lambda: [one.session_name for one in Client(service.url).list(status="live", page=2)]
    )
    async with AsyncClient(service.url) as mesh:
        assert [one.session_name async for one in mesh.list(status="live", page=2)] == found == ["a", "b", "c"]
    first, second = (one[1] for one in service.asked[:2])
    assert first == "/sessions?limit=2&status=live"
    assert second == "/sessions?limit=2&status=live&cursor=c%2F1%3D"


def test_an_id_cannot_leave_its_place(service: Service) -> None:
    service.answers = [(204, {}, b"")]
    Client(service.url).end("../providers?x#y")
    assert service.asked[0][1] == "/sessions/..%2Fproviders%3Fx%23y"
