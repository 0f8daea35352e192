"""The client and its examples against a mesh; docs/client.md, run as it stands there."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

import meshag
from bench import instant
from meshag.client import AsyncClient, Client, Conflict, InvalidRequest, NotFound
from meshag.embedded.mesh import Mesh
from meshes import ROOT, ask, call, create, join
from standins import eventually, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

CONFIG = {"config": instant.config()}


@pytest.fixture
def client(mesh: Mesh) -> Client:
    return Client(mesh.url)


def test_a_session_from_its_beginning_to_its_end(client: Client) -> None:
    made = client.create({**CONFIG, "session_name": "Berlin"})
    shown = client.show(made.session_id)
    assert (shown.session_name, shown.status, shown.version) == ("Berlin", "created", 1)
    assert shown.owners["llm"].alive
    assert made.session_id in [one.session_id for one in client.list(status="created", page=1)]
    assert client.change(made.session_id, {"session_name": "Bonn"}).version == 2
    assert client.extend(made.session_id, 600).expires_in_s == 600
    assert client.token(made.session_id).count(".") == 2
    assert client.transcript(made.session_id).lines == []
    assert client.transcript_text(made.session_id, "vtt") == "WEBVTT\n"
    assert client.history(made.session_id).turns == []
    client.interrupt(made.session_id)
    with pytest.raises(Conflict) as nobody:
        client.say(made.session_id, "Hello.")
    assert nobody.value.code == "nobody_listening"
    client.end(made.session_id)
    client.end(made.session_id)
    with pytest.raises(NotFound):
        client.show(made.session_id)


def test_what_cannot_be_is_said_with_the_fix(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.create({"config": {"sistem_prompt": "x"}})
    assert (refused.value.path, refused.value.problems[0].code) == ("config.sistem_prompt", "field_unknown")
    assert "system_prompt" in refused.value.fix


def test_a_room_over_a_websocket(client: Client) -> None:
    room = client.create_room(room_config={"name": "Front desk"}, options=CONFIG)
    assert room.room_name == room.session_id
    assert client.show(room.session_id).session_name == "Front desk"


def test_the_same_key_makes_one_session(client: Client) -> None:
    first = client.create(CONFIG, idempotency_key="one")
    assert client.create(CONFIG, idempotency_key="one").session_id == first.session_id
    with pytest.raises(InvalidRequest) as other:
        client.create({**CONFIG, "session_name": "other"}, idempotency_key="one")
    assert other.value.code == "idempotency_key_reused"


def test_providers_are_switched(client: Client) -> None:
    assert client.providers().providers["llm"]["instant"].state == "closed"
    assert client.switch("llm", "instant", "off").state == "off"
    assert client.switch("llm", "instant", "on").state == "closed"
    assert client.ask("GET", "/health")["status"] == "alive"


async def test_events_go_on_after_the_connection_was_lost(mesh: Mesh) -> None:
    async with AsyncClient(mesh.url) as client:
        async with aclosing(client.events(types=["session_created"])) as events:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.5)  # it watches from now on
            first = await client.create(CONFIG)
            seen = await asyncio.wait_for(waiting, 10)
            assert (seen.type, seen.session_id, seen.data["transport"]) == (
                "session_created",
                first.session_id,
                "websocket",
            )
        second = await client.create(CONFIG)
        async with aclosing(client.events(after=seen.id, sessions=[second.session_id])) as events:
            again = await asyncio.wait_for(anext(events), 10)
            assert again.session_id == second.session_id
            assert again.id > seen.id
            for response in client._http._connector._acquired:  # type: ignore[union-attr]
                response.close()  # the connection is cut
            await client.end(second.session_id)
            ended = await asyncio.wait_for(anext(events), 15)
            assert (ended.type, ended.session_id) == ("session_ended", second.session_id)
        with pytest.raises(InvalidRequest):
            await anext(client.events(types=["nothing"]))


# -- the examples -----------------------------------------------------------------------------------------------------


def run(mesh: Mesh, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"MESHAG_URL": mesh.url, "PATH": "", "PYTHONPATH": str(ROOT / "src")},
    )


async def test_everybody_is_told(mesh: Mesh) -> None:
    first, second, _ = create(mesh), create(mesh), create(mesh)
    async with join(first) as one, join(second) as other:
        for created in (first, second):
            where = f"/sessions/{created['session_id']}"
            await eventually("live", lambda where=where: call(mesh, "GET", where)[1]["status"] == "live")
        ran = await asyncio.to_thread(run, mesh, "announce.py", "This line closes in ten minutes.")
        assert (ran.stdout, ran.stderr, ran.returncode) == ("told 2 callers\n", "", 0)
        for caller in (one, other):
            await caller.wait_for("speech_ended", turn=1, interrupted=False)
            assert caller.reply(1).strip() == "This line closes in ten minutes."


def typed(mesh: Mesh, *words: str) -> str:
    """`meshag session …`, to its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "meshag", "session", *words, "--url", mesh.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout + ran.stderr


async def test_the_command_line_says_and_shows_it(mesh: Mesh) -> None:
    created = create(mesh)
    session = created["session_id"]
    assert "nobody_listening" in await asyncio.to_thread(typed, mesh, "say", session, "Hello.")
    async with join(created) as caller:
        await caller.wait_for("ready")
        assert await asyncio.to_thread(typed, mesh, "say", session, "Hello there.", "--wait") == ""
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
    where = f"/sessions/{session}/history"
    await eventually("it is written down", lambda: call(mesh, "GET", where)[1]["turns"])
    assert (await asyncio.to_thread(typed, mesh, "transcript", session)).endswith("] Agent: Hello there.\n")
    assert "<v Agent>Hello there." in await asyncio.to_thread(typed, mesh, "transcript", session, "--vtt")


@pytest.fixture
def watching(mesh: Mesh) -> Iterator["subprocess.Popen[str]"]:
    env = {"MESHAG_URL": mesh.url, "PATH": "", "PYTHONPATH": str(ROOT / "src")}
    argv = [sys.executable, str(ROOT / "examples" / "watch.py")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.terminate()


async def test_what_is_said_is_printed(mesh: Mesh, watching: "subprocess.Popen[str]") -> None:
    assert watching.stdout is not None
    created = create(mesh)
    line = asyncio.ensure_future(asyncio.to_thread(watching.stdout.readline))
    async with join(created) as caller:
        await caller.wait_for("ready")
        turn = 0
        while not line.done():  # it may not watch yet
            turn += 1
            await ask(caller, turn)
            await caller.wait_for("speech_started", turn=turn)
    assert re.search(rf"Z {created['session_id']} (caller: Where is my order number \d+\?|agent: .+)\n", await line)


def test_the_page_s_example_runs(
    mesh: Mesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "client.md").read_text("utf-8")
    (code,) = re.findall(r"^```python example\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    connectors = instant.config()
    monkeypatch.setenv("MESHAG_URL", mesh.url)
    whole = Client.create

    def on_instant(self: Client, request: Any = None, **more: Any) -> Any:
        return whole(self, {**request, "config": {**connectors, **request["config"]}}, **more)

    monkeypatch.setattr(Client, "create", on_instant)
    exec(compile(code, "client.md", "exec"), {"meshag": meshag})
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ws://\S+ \S+", printed[0])
    assert printed[1].endswith(" support")
    assert printed[-3:] == ["2", "WEBVTT", ""]


def test_the_page_lists_every_method() -> None:
    page = (ROOT / "docs" / "client.md").read_text("utf-8")
    methods = {name for kind in (Client, AsyncClient) for name in vars(kind) if not name.startswith("_")}
    listed = set(re.findall(r"`(\w+)\(", page))
    assert methods - {"url", "aclose"} == listed & methods
    for kind in (Client, AsyncClient):
        assert methods - set(vars(kind)) <= {"events", "aclose"}
