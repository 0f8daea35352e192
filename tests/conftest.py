"""What every test may use, and what every test must keep to.

- Each test declares its kind: `pytestmark = pytest.mark.unit` (contract, integration, faults, security, e2e).
- No test leaves a process behind.
"""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshag.embedded.servers import EmbeddedServers

pytest_plugins = ["meshes"]

KINDS = ("unit", "contract", "integration", "faults", "security", "e2e")

_RUN = secrets.token_hex(8)
_MARK = f"MESHAG_TEST_RUN={_RUN}".encode()


def pytest_configure() -> None:
    """Mark our descendants: the environment is inherited, also by those that leave our process tree.

    A shell lets what a script starts with `&` ignore SIGINT, and so would all that the tests start.
    """
    os.environ["MESHAG_TEST_RUN"] = _RUN
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that do not say of what kind they are."""
    unmarked = {item.nodeid.partition("::")[0] for item in items if not any(map(item.get_closest_marker, KINDS))}
    if unmarked:
        kinds = " | ".join(KINDS)
        raise pytest.UsageError(
            f"declare the kind, pytestmark = pytest.mark.({kinds}), in: {', '.join(sorted(unmarked))}"
        )


@pytest.fixture(scope="session", autouse=True)
def _no_process_left_behind() -> Iterator[None]:
    """At the end of the run every process that a test started has ended and is reaped."""
    yield
    deadline = time.monotonic() + 3
    while (left := processes_of_this_run()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"tests left processes behind: {left}"


def processes_of_this_run() -> dict[int, str]:
    """Our descendants, and whoever carries our mark: process id to what it is. Empty where there is no /proc."""
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            marked = _MARK in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended, or is not ours
            marked = False
        pid = int(process.name)
        parents[pid] = int(status[1])
        found[pid] = "a zombie" if status[0] == "Z" else command
        if marked:
            parents[pid] = os.getpid()
    ours = {pid: what for pid, what in found.items() if os.getpid() in _ancestors(pid, parents)}
    return {pid: what for pid, what in ours.items() if "multiprocessing.resource_tracker" not in what}


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line: list[int] = []
    while (pid := parents.get(pid, 0)) and pid not in line:
        line.append(pid)
    return line


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """A nats-server and a valkey-server for the whole run. Leave them as you found them: running, nothing frozen."""
    with EmbeddedServers(preferred_ports=(0, 0)) as servers:
        yield servers


@pytest.fixture
def fresh_servers() -> Iterator[EmbeddedServers]:
    """A nats-server and a valkey-server for this test alone: kill, freeze and restart them as you like."""
    with EmbeddedServers(preferred_ports=(0, 0)) as servers:
        yield servers
