"""Whoever starts servers may be killed without warning; the servers do not stay."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshag.embedded.child import Way

pytestmark = pytest.mark.faults

WAYS: tuple[Way, ...] = ("bind", "watch") if sys.platform == "linux" else ("watch",)

_PARENT = """
import sys, time
from pathlib import Path
from meshag.embedded.child import Child
from meshag.embedded.servers import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[2]), preferred_ports=(0, 0), way=sys.argv[1]).start()
child = Child.start(["sleep", "600"], name="sleep", way=sys.argv[1])
print(servers.nats.pid, servers.valkey.pid, child.pid, flush=True)
time.sleep(600)
"""

_FORKING_PARENT = """
import os, sys, time
from meshag.embedded.child import Child
child = Child.start(["sleep", "600"], name="sleep", way=sys.argv[1])
sibling = os.fork()  # holds every descriptor that we hold
if not sibling:
    time.sleep(600)
print(child.pid, sibling, flush=True)
time.sleep(600)
"""


class Family:
    """A parent process and the children it told of."""

    def __init__(self, script: str, *argv: str) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", script, *argv], stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout is not None
        self.children = [int(word) for word in self.parent.stdout.readline().split()]

    def end(self) -> None:
        self.parent.kill()
        self.parent.wait()
        assert self.parent.stdout is not None
        self.parent.stdout.close()
        for pid in filter(alive, self.children):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def family() -> Iterator[Callable[..., Family]]:
    families: list[Family] = []

    def start(script: str, *argv: str) -> Family:
        families.append(Family(script, *argv))
        return families[-1]

    yield start
    for one in families:
        one.end()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that init has not reaped yet does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def gone_after_s(pids: list[int], limit_s: float) -> float:
    began = time.monotonic()
    while any(map(alive, pids)):
        if time.monotonic() - began > limit_s:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("way", WAYS)
def test_servers_end_with_a_killed_parent(family: Callable[..., Family], way: Way, tmp_path: Path):
    one = family(_PARENT, way, str(tmp_path))
    assert len(one.children) == 3
    assert all(map(alive, one.children))
    one.parent.kill()
    assert gone_after_s(one.children, 2.0) < 2.0


@pytest.mark.parametrize("way", WAYS)
def test_frozen_servers_end_with_a_killed_parent(family: Callable[..., Family], way: Way, tmp_path: Path):
    one = family(_PARENT, way, str(tmp_path))
    for pid in one.children:
        os.kill(pid, signal.SIGSTOP)
    one.parent.kill()
    assert gone_after_s(one.children, 2.0) < 2.0


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_of_the_parent_does_not_keep_the_child_alive(family: Callable[..., Family], way: Way):
    """The fork holds the leash's pipe open, so the end of the pipe never comes."""
    one = family(_FORKING_PARENT, way)
    child, sibling = one.children
    one.parent.kill()
    assert gone_after_s([child], 2.0) < 2.0
    assert alive(sibling)


def test_the_leash_by_hand_ends_with_its_stdin():
    argv = [
        sys.executable,
        "-m",
        "meshag.embedded.leash",
        sys.executable,
        "-uc",
        "print(1); import time; time.sleep(60)",
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leash:
        assert leash.stdin is not None
        assert leash.stdout is not None
        leash.stdout.readline()
        assert leash.poll() is None
        leash.stdin.close()
        assert leash.wait(5) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's way is Linux's")
def test_a_parent_that_died_before_the_kernel_was_asked_is_noticed(tmp_path: Path):
    """`bind` compares its parent with the one that it was given: another one means that ours is dead."""
    leash = Path(__file__).parents[2] / "src/meshag/embedded/leash.py"
    reader, status = os.pipe()
    argv = [sys.executable, str(leash), "bind", "1", str(status), "touch", str(tmp_path / "ran")]
    ended = subprocess.run(argv, pass_fds=(status,), check=False)
    os.close(reader)
    os.close(status)
    assert ended.returncode == 1
    assert not (tmp_path / "ran").exists()
