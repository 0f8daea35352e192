"""`meshag up` and `meshag serve` end when they are told to, at whatever moment, in bounded time and without a trace."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import instant
from meshag.commands.signals import STOP_BOUND_S
from meshag.embedded.servers import EmbeddedServers
from meshes import ROOT, free_port_base

pytestmark = pytest.mark.faults

DEAF = """
import os, signal, time
from bench.instant import InstantStt

class DeafStt(InstantStt):
    name = "deaf"

    async def warm(self):  # as a library that loads a model and lets nothing else run meanwhile
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        open(os.environ["DEAF_MARK"], "w").close()
        time.sleep(600)
"""


class Running:
    """A `meshag` command with a temporary directory of its own."""

    def __init__(self, place: Path, *words: str, **env: str) -> None:
        self.place = place
        self.tmp = place / "tmp"
        self.tmp.mkdir(parents=True)
        (place / "deaf.py").write_text(DEAF)
        self.mark = place / "deaf.mark"
        kept = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "VALKEY_URL")}
        surroundings = {
            "MESHAG_CONNECTORS": instant.CONNECTORS,
            "PYTHONPATH": f"{ROOT}:{place}",
            "TMPDIR": str(self.tmp),
            "DEAF_MARK": str(self.mark),
            "STOP_TEST": str(place),
        }
        with (place / "out").open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "meshag", *words],
                stdout=file,
                stderr=file,
                env={**kept, **surroundings, **env},
            )

    @property
    def said(self) -> str:
        return (self.place / "out").read_text()

    def wait_for(self, true: Callable[[], object], limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def left(self) -> list[str]:
        """Processes that it started, and files that it made, which are still there."""
        mark = f"STOP_TEST={self.place}".encode()
        found = [path.name for path in self.tmp.iterdir()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    mark in (process / "environ").read_bytes().split(b"\0")
                    and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                ):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def left_soon(self) -> list[str]:
        """The same, a moment later: who is killed with its parent ends after it."""
        deadline = time.monotonic() + 3
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*words: str, **env: str) -> Running:
        started.append(Running(tmp_path / f"r{len(started)}", *words, **env))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether the process has taken the signal into its own hands."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def up(run: Callable[..., Running], **env: str) -> Running:
    return run("up", "--no-pull", "--port-base", str(free_port_base()), "--workers", "stt=1,llm=1,tts=1", **env)


def deaf(run: Callable[..., Running]) -> Running:
    """A mesh whose recogniser hears no signal while it loads."""
    one = up(run, MESHAG_CONNECTORS=f"{instant.CONNECTORS},stt:deaf=deaf:DeafStt")
    one.wait_for(one.mark.exists)
    return one


@pytest.mark.parametrize("after_s", [0, 0.15, 0.5, 1.2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_ends_at_any_moment(run: Callable[..., Running], number: signal.Signals, after_s: float) -> None:
    """Among the imports, as the servers start, as the services do. Before that, Python shows a traceback of its own."""
    one = up(run)
    one.wait_for(lambda: hears(one.process.pid, signal.SIGTERM))
    time.sleep(after_s)
    one.process.send_signal(number)
    status = one.process.wait(STOP_BOUND_S)
    assert status in ((130,) if number == signal.SIGINT else (143, 0)), one.said
    assert "Traceback" not in one.said
    assert "ignored" not in one.said
    assert one.left() == []


_IMPORTS = """
import builtins, os, runpy, signal, sys
found, moment = builtins.__import__, sys.argv.pop()
def look(name, *rest, **more):
    if name == moment:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:  # as libraries do
            pass
    return found(name, *rest, **more)
builtins.__import__ = look
sys.argv += ["up", "--help"]
runpy.run_module("meshag", run_name="__main__")
"""


@pytest.mark.parametrize(("name", "status", "said"), [("argparse", -2, ""), ("meshag.embedded.mesh", 130, "\n")])
def test_ctrl_c_among_the_imports_is_neither_swallowed_nor_shown(name: str, status: int, said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORTS, name], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "", said)


def test_a_service_that_hears_nothing_is_killed(run: Callable[..., Running]) -> None:
    one = deaf(run)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(STOP_BOUND_S) == 0, one.said
    assert one.said.endswith("\nStopping …\n")
    assert one.left() == []


def test_a_second_ctrl_c_waits_for_nobody(run: Callable[..., Running]) -> None:
    one = deaf(run)
    one.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert one.process.poll() is None
    began = time.monotonic()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(STOP_BOUND_S) == 130
    assert time.monotonic() - began < 2  # the deaf one would be waited for twice as long
    assert one.left_soon() == []


def test_frozen_services_and_servers_end_too(run: Callable[..., Running]) -> None:
    one = up(run)
    one.wait_for(lambda: "Stop it with Ctrl-C" in one.said)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == one.process.pid
        except OSError:
            continue
        if ours:
            os.kill(int(process.name), signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(STOP_BOUND_S) == 0, one.said
    assert one.left() == []


def test_what_a_killed_mesh_leaves_is_removed_by_the_next(run: Callable[..., Running]) -> None:
    one = up(run)
    one.wait_for(lambda: "Starting the mesh" in one.said and list(one.tmp.glob("meshag-*/valkey")))
    one.process.kill()
    one.process.wait()
    directories = list(one.tmp.iterdir())
    assert directories
    other = up(run, TMPDIR=str(one.tmp))
    other.wait_for(lambda: not any(map(Path.exists, directories)))
    other.process.send_signal(signal.SIGTERM)
    assert other.process.wait(STOP_BOUND_S) == 0
    assert one.left_soon() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_ends_while_it_starts(
    run: Callable[..., Running], servers: EmbeddedServers, number: signal.Signals
) -> None:
    """It is told before it takes work, so there is nothing to hand over and nothing to wait for."""
    one = run("serve", "tts", "--port", str(free_port_base()), NATS_URL="nats://127.0.0.1:1")
    time.sleep(0.8)  # it asks for NATS for 5 s
    one.process.send_signal(number)
    began = time.monotonic()
    assert one.process.wait(STOP_BOUND_S) == 128 + number, one.said
    assert time.monotonic() - began < 2
    assert "Traceback" not in one.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_at_work_ends_with_status_0(
    run: Callable[..., Running], servers: EmbeddedServers, number: signal.Signals
) -> None:
    urls = {"NATS_URL": servers.nats_url, "VALKEY_URL": servers.valkey_url}
    one = run("serve", "tts", "--port", str(free_port_base()), **urls)
    one.wait_for(lambda: "service_ready" in one.said)
    one.process.send_signal(number)
    assert one.process.wait(STOP_BOUND_S) == 0, one.said
    assert "Traceback" not in one.said
    assert ("drained" in one.said) is (number == signal.SIGTERM)
    assert one.left() == []
