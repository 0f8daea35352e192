"""Whole meshes for tests: real servers, real processes, providers that answer at once."""

import itertools
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import instant
from meshag import clock
from meshag.embedded.mesh import Mesh, Service
from meshag.embedded.ports import is_free
from meshag.settings import Settings
from meshag.testing import TestCaller

ROOT = Path(__file__).parent.parent
STAGES = ("transport", "stt", "llm", "tts")


def free_port_base() -> int:
    """A port base whose services' ports are all free."""
    for _ in range(100):  # at random: another run may be looking for ports at the same moment
        base = random.randrange(14_000, 30_000, 100) + 81
        if all(is_free("127.0.0.1", base + offset) for offset in range(40)):
            return base
    raise AssertionError("no free ports")


def start_mesh(tmp_path: Path, *, workers: dict[str, int] | None = None, **env: str) -> Mesh:
    """A mesh on the instant providers. Stop it yourself."""
    surroundings = {
        "MESHAG_CONNECTORS": instant.CONNECTORS,
        "PYTHONPATH": str(ROOT),
        "MESHAG_CACHE_DIR": str(tmp_path / "cache"),
        **env,
    }
    mesh = Mesh(Settings(port_base=free_port_base()), workers=workers, env=surroundings)
    mesh.preferred_ports = (0, 0)
    try:
        mesh.start()
        mesh.wait_ready()
    except BaseException:
        print(logs(mesh))
        mesh.stop()
        raise
    return mesh


def logs(mesh: Mesh) -> str:
    """What the services wrote, for a failing test."""
    return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(mesh.log_dir.glob("*.log")))


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One mesh for the whole run. Leave it as you found it: nothing killed."""
    mesh = start_mesh(tmp_path_factory.mktemp("mesh"), workers={"stt": 1, "llm": 1, "tts": 1})
    yield mesh
    mesh.stop()


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """A mesh for this test alone, two workers a stage: kill what you like."""
    mesh = start_mesh(tmp_path)
    yield mesh
    mesh.stop()


def call(mesh: Mesh, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """One HTTP exchange with the transport service: status and JSON (or text)."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(mesh.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    try:
        return status, json.loads(raw) if raw else None
    except ValueError:
        return status, raw.decode(errors="replace")


def create(mesh: Mesh, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A session on the instant providers."""
    status, body = call(mesh, "POST", "/sessions/with-config", {"config": config or instant.config(), **more})
    assert status == 201, body
    return body


def join(created: dict[str, Any], **rates: int) -> TestCaller:
    """`async with join(created) as caller`."""
    return TestCaller(created["room_url"], created["token"], **rates)


async def ask(caller: TestCaller, number: int, *, frames: int = 5) -> None:
    """Speak one question."""
    body = [instant.speech_frame()] * frames
    await caller.speak(instant.speech_frame(instant.START), *body, instant.speech_frame(instant.END, number))


def slow(**stages: int) -> dict[str, Any]:
    """A session whose providers take so many milliseconds for each item."""
    config: dict[str, Any] = instant.config()
    for stage, delay_ms in stages.items():
        config["connectors"][stage] = {"primary": "instant", "config": {"instant": {"delay_ms": delay_ms}}}
    return config


async def owner(mesh: Mesh, caller: TestCaller, stage: str) -> Service:
    """The service that owns a stage of the call now."""
    worker = (await caller.wait_for("ready"))["owners"][stage]
    for event in caller.of("owner_changed"):
        if event["stage"] == stage:
            worker = event["worker"]
    return next(service for service in mesh.services if mesh._ready_body(service).get("worker") == worker)


def mend(mesh: Mesh) -> None:
    """Start again what was killed, until all of it is ready."""
    deadline_s = clock.monotonic_s() + 60
    while True:
        mesh.tend()
        if all(service.child.poll() is None and mesh.is_ready(service) for service in mesh.services):
            return
        assert clock.monotonic_s() < deadline_s, logs(mesh)
        clock.sleep_s(0.1)


def longest_gap_s(caller: TestCaller, turn_bytes: int) -> float:
    """Between two pieces of audio of the same turn: each turn has so many bytes."""
    longest, passed = 0.0, 0
    for (at, size), (then, _) in itertools.pairwise(caller.audio_at):
        passed += size
        if passed % turn_bytes:
            longest = max(longest, then - at)
    return longest
