"""Live sessions recorded from the command line, shown, replayed."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshag.embedded.mesh import Mesh
from meshag.recording.file import read
from meshes import ask, call, create, join
from recordings import recorded

pytestmark = pytest.mark.integration

started: list[subprocess.Popen[str]] = []


def meshag(mesh: Mesh, *words: str) -> subprocess.Popen[str]:
    env = {"PATH": "/usr/bin:/bin", "NATS_URL": mesh.servers.nats_url, "VALKEY_URL": mesh.servers.valkey_url}
    argv = [sys.executable, "-m", "meshag", *words]
    started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env))
    return started[-1]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """A failed test leaves no recorder behind."""
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    started.clear()


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


async def until_it_is_there(path: Path, process: subprocess.Popen[str]) -> None:
    """The recorder writes when it hears."""
    deadline = time.monotonic() + 30
    while not await asyncio.to_thread(lambda: path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_live_session_is_followed_shown_and_replayed(mesh: Mesh, tmp_path: Path) -> None:
    created = await asyncio.to_thread(create, mesh)
    session, path = created["session_id"], tmp_path / "call.mesh"
    recorder = meshag(mesh, "record", session, "--follow", "-o", str(path))
    await until_it_is_there(path, recorder)
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
        prompt = {"config": {"system_prompt": "Be brief."}}
        status, _ = await asyncio.to_thread(call, mesh, "PATCH", f"/sessions/{session}/config", prompt)
        assert status == 200
        await caller.type("And then?")
        await caller.wait_for("speech_ended", turn=2)
        await asyncio.sleep(0.7)
        await asyncio.to_thread(call, mesh, "DELETE", f"/sessions/{session}")
    status, out, err = await asyncio.to_thread(done, recorder)
    assert (status, "(ended)" in out) == (0, True), err
    recording = read(path)
    assert [one.version for one in recording.configs] == [1, 2]
    assert recording.configs[1].request["config"]["system_prompt"] == "Be brief."
    assert sorted(recording.said) == [1, 2]
    assert all(one.sequence and one.at_ns for one in recording.frames)
    kinds = {one.subject for one in recording.frames}
    assert kinds == {"audio.input", "text.input", "stt.output", "llm.output", "tts.output", "control"}
    assert path.stat().st_mode & 0o077 == 0
    status, out, err = await asyncio.to_thread(done, meshag(mesh, "show", "--json", str(path)))
    assert status == 0, err
    assert [turn["user"] for turn in json.loads(out)["turns"] if turn["turn"]] == [
        "Where is my order number 1?",
        "And then?",
    ]
    status, out, err = await asyncio.to_thread(done, meshag(mesh, "replay", str(path)))
    assert (status, "the same. 2 turns" in out) == (0, True), out + err


async def test_a_snapshot_and_a_recording_that_is_stopped(mesh: Mesh, tmp_path: Path) -> None:
    created = await asyncio.to_thread(create, mesh)
    session, followed, once = created["session_id"], tmp_path / "followed.mesh", tmp_path / "once.mesh"
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
        recorder = meshag(mesh, "record", session, "-f", "-o", str(followed))
        await until_it_is_there(followed, recorder)
        await asyncio.sleep(0.5)
        recorder.send_signal(signal.SIGINT)
        status, out, err = await asyncio.to_thread(done, recorder)
        assert (status, "(stopped)" in out) == (0, True), out + err
        status, out, err = await asyncio.to_thread(done, meshag(mesh, "record", session, "-o", str(once)))
        assert (status, "(snapshot)" in out) == (0, True), out + err
        status, _, err = await asyncio.to_thread(done, meshag(mesh, "record", session, "-o", str(once)))
        assert (status, "is there already" in err) == (2, True)
    for path in (followed, once):
        recording = read(path)
        assert not recording.cut_off
        assert recording.frames
        assert {one.stage for one in recording.owners} == {"transport", "stt", "llm", "tts"}
    await asyncio.to_thread(call, mesh, "DELETE", f"/sessions/{session}")


def test_a_session_that_is_not_there_leaves_no_file(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "none.mesh"
    status, _, err = done(meshag(mesh, "record", "a" * 26, "-o", str(path)))
    assert (status, "there is no session" in err, path.exists()) == (1, True, False)
    status, _, err = done(meshag(mesh, "record", "not-an-id", "-o", str(path)))
    assert (status, path.exists()) == (2, False), err


@pytest.mark.timeout(120)
async def test_a_session_whose_owners_are_killed_is_replayed(own_mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "killed.mesh"
    await recorded(own_mesh, path, kill=True)
    status, out, err = await asyncio.to_thread(done, meshag(own_mesh, "replay", str(path)))
    assert (status, "the same. 6 turns" in out) == (0, True), out + err
    status, out, err = await asyncio.to_thread(done, meshag(own_mesh, "show", str(path)))
    assert (status, "3 owners replaced" in out) == (0, True), out + err
