"""Both servers on one machine: nats-server and valkey-server beside us, gone when we are."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meshag import clock
from meshag.embedded.child import Way
from meshag.embedded.nats_server import NatsServer
from meshag.embedded.scratch import Scratch
from meshag.embedded.valkey_server import ValkeyServer
from meshag.errors import MeshError

_T = TypeVar("_T")

__all__ = ["EmbeddedServers", "NatsServer", "ValkeyServer"]


class EmbeddedServers:
    """A nats-server and a valkey-server as children of this process, listening on 127.0.0.1.

        with EmbeddedServers() as servers:
            connect(servers.nats_url)

    All calls block (about 0.1 s): make them before an event loop runs, or in the main thread of a test. Start them from
    the main thread; see `meshag.embedded.child.Way`.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        nats_port: int | None = None,
        valkey_port: int | None = None,
        preferred_ports: tuple[int, int] = (NatsServer.default_port, ValkeyServer.default_port),
        valkey_maxmemory_bytes: int = 0,
        way: Way = "auto",
        pause: Callable[[float], object] = clock.sleep_s,
    ) -> None:
        """`data_dir`: kept from start to start; None: a temporary one, removed by `stop`.

        `pause`: how it waits, seconds; what that raises ends the start.

        `nats_port`, `valkey_port`: these or MeshError `port_taken`; None: `preferred_ports` when free (0: never), else
        any free port.
        """
        self._chosen_dir = data_dir
        self._nats_port = nats_port
        self._valkey_port = valkey_port
        self._preferred_ports = preferred_ports
        self._maxmemory_bytes = valkey_maxmemory_bytes
        self._way = way
        self._pause = pause
        self._scratch: Scratch | None = None
        self._dir: Path | None = None
        self._lock: int | None = None
        self._nats: NatsServer | None = None
        self._valkey: ValkeyServer | None = None

    def start(self) -> "EmbeddedServers":
        """Start both and return when both answer. Starts nothing when one of them cannot be. Idempotent.

        Raises MeshError: `server_missing`, `server_failed`, `port_taken`, `data_dir_taken`.
        """
        if self._dir is not None:
            return self
        try:
            self._dir = self._open_dir()
            self._nats = NatsServer.start(
                _subdir(self._dir, "nats"),
                port=self._nats_port,
                preferred=self._preferred_ports[0],
                way=self._way,
                pause=self._pause,
            )
            self._valkey = ValkeyServer.start(
                _subdir(self._dir, "valkey"),
                port=self._valkey_port,
                preferred=self._preferred_ports[1],
                maxmemory_bytes=self._maxmemory_bytes,
                way=self._way,
                pause=self._pause,
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both, remove the directory if it was a temporary one. Idempotent."""
        running = [server for server in (self._nats, self._valkey) if server is not None]
        for server in running:
            server.ask_to_stop()
        for server in running:
            server.stop()
        self._nats = self._valkey = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None
        self._dir = None

    def kill(self) -> None:
        """SIGKILL both, wait for neither; for a process that ends itself now. A temporary directory is removed."""
        for server in (self._nats, self._valkey):
            if server is not None:
                server.send_kill()
        if self._scratch is not None:
            self._scratch.remove()

    def __enter__(self) -> "EmbeddedServers":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def data_dir(self) -> Path:
        """Where their data is."""
        return _started(self._dir)

    @property
    def nats(self) -> NatsServer:
        """The nats-server: `kill`, `restart`, `freeze`, `thaw`, `pid`, `log_path`."""
        return _started(self._nats)

    @property
    def valkey(self) -> ValkeyServer:
        """The valkey-server: `kill`, `restart`, `freeze`, `thaw`, `pid`, `log_path`."""
        return _started(self._valkey)

    @property
    def nats_url(self) -> str:
        """What a client connects to. Holds a secret."""
        return self.nats.url

    @property
    def valkey_url(self) -> str:
        """What a client connects to. Holds a secret."""
        return self.valkey.url

    def restart_nats(self) -> None:
        """Stop it in order if it runs, start it with the same port, data and password."""
        self.nats.restart()

    def restart_valkey(self) -> None:
        """Stop it in order if it runs, start it with the same port, data and password."""
        self.valkey.restart()

    def kill_nats(self) -> None:
        """SIGKILL. `restart_nats` brings it back."""
        self.nats.kill()

    def kill_valkey(self) -> None:
        """SIGKILL. `restart_valkey` brings it back."""
        self.valkey.kill()

    def _open_dir(self) -> Path:
        if self._chosen_dir is None:
            self._scratch = Scratch()
            return self._scratch.path
        path = self._chosen_dir.expanduser().resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshError(f"{path} is in use by another MeshAG on this machine", code="data_dir_taken") from None
        return path


def _subdir(path: Path, name: str) -> Path:
    subdir = path / name
    subdir.mkdir(mode=0o700, exist_ok=True)
    return subdir


def _started(part: _T | None) -> _T:
    if part is None:
        raise MeshError("the embedded servers are not started", code="server_stopped")
    return part
