"""Service processes that are there at once: forked from one that has already imported everything.

What runs is `meshag serve`, as ever. To import it takes a second of a core, which a thousand kills do not have.

    python -m faults.chaos.nursery      stdin: `start STAGE PORT LOG`, `poll PID`; stdout: an answer a line
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from meshag import clock
from meshag.embedded.child import Child
from meshag.embedded.mesh import Mesh, Service, service_name
from meshag.subjects import Stage

_PR_SET_PDEATHSIG = 1


class Nursery:
    """The process that forks them. `close` it: what it has started ends with it."""

    def __init__(self, env: dict[str, str]) -> None:
        """`env`: of the services."""
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "faults.chaos.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
            start_new_session=True,
        )
        self._ended: dict[int, int] = {}

    def start(self, stage: Stage, port: int, log_path: Path) -> int:
        """Fork a service. Returns its process id."""
        return int(self._ask(f"start {stage} {port} {log_path}"))

    def poll(self, pid: int) -> int | None:
        """Its exit code, minus a signal's number; None while it runs."""
        if pid not in self._ended and (said := self._ask(f"poll {pid}")) != "runs":
            self._ended[pid] = int(said)
        return self._ended.get(pid)

    def close(self) -> None:
        """End it. Idempotent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(question + "\n")
            answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the nursery has ended")
        return answer


class ForkedChild(Child):
    """A service of the nursery's."""

    def __init__(self, name: str, nursery: Nursery, pid: int) -> None:
        self.name, self.pid = name, pid
        self._nursery = nursery

    def poll(self) -> int | None:
        return self._nursery.poll(self.pid)

    def wait(self, timeout_s: float | None = None) -> int | None:
        until_s = clock.monotonic_s() + (3600 if timeout_s is None else timeout_s)
        while (code := self.poll()) is None and clock.monotonic_s() < until_s:
            clock.sleep_s(0.02)
        return code

    def kill(self) -> int:
        self.send(signal.SIGKILL)
        code = self.wait(5)
        return 0 if code is None else code

    def _let_go(self) -> None:
        pass


class ForkedMesh(Mesh):
    """A mesh whose services come from a nursery."""

    nursery: Nursery | None = None

    def _launch(self, stage: Stage, index: int) -> Service:
        if self.nursery is None:
            self.nursery = Nursery(self._env)
        port, name = self._settings.port(stage, index), service_name(stage, index)
        pid = self.nursery.start(stage, port, self.log_dir / f"{name}.log")
        return Service(stage, index, port, ForkedChild(name, self.nursery, pid), clock.monotonic_s())

    def stop(self) -> None:
        super().stop()
        if self.nursery is not None:
            self.nursery.close()
            self.nursery = None


# -- in the nursery's process -----------------------------------------------------------------------------------------


def _serve(stage: str, port: str, log_path: str) -> None:
    """Become a service. Does not return."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["meshag", "serve", stage, "--port", port]
    from meshag.cli import main

    code: object = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def _run() -> None:
    import gc

    import meshag.api.serve
    import meshag.commands.serve
    from meshag.connectors.registry import Registry
    from meshag.settings import Settings
    from meshag.subjects import STAGES

    assert meshag.api.serve
    assert meshag.commands.serve
    registry = Registry(Settings().connectors)
    for stage in STAGES:
        for name in registry.names(stage):
            with contextlib.suppress(Exception):
                registry.get(stage, name)
    gc.freeze()
    codes: dict[int, int] = {}
    children: list[int] = []
    for line in sys.stdin:
        order, *rest = line.split()
        if order == "start":
            pid = os.fork()
            if pid == 0:
                _serve(*rest)
            children.append(pid)
            print(pid, flush=True)
        else:
            pid = int(rest[0])
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            print(codes.get(pid, "runs"), flush=True)
    for pid in children:
        if pid not in codes:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    _run()
