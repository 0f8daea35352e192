"""The whole mesh on one machine: the two servers and every service, each its own process, children of this one."""

import http.client
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from meshag import clock
from meshag.embedded.child import Child
from meshag.embedded.ports import is_free, port_owner_hint
from meshag.embedded.scratch import Scratch
from meshag.embedded.servers import EmbeddedServers, NatsServer, ValkeyServer
from meshag.errors import MeshError
from meshag.settings import Settings, default_cache_dir
from meshag.subjects import STAGES, Stage

DEFAULT_WORKERS: dict[Stage, int] = {"stt": 2, "llm": 2, "tts": 2, "transport": 1}
"""Two of each, so that one may die and the call goes on; a caller's socket cannot be in two places."""

START_ORDER: tuple[Stage, ...] = ("stt", "llm", "tts", "transport")
"""The one that loads longest first."""

READY_S = 120.0
"""How long a service may take to load its models."""

POLL_S = 0.1
"""How often services that are not ready are asked: each answer takes time from the loading that it asks about."""

STOP_S = 4.0
"""How long a service may take to end before it is killed."""

RESTART_AFTER_S = 0.5
MOST_RESTART_AFTER_S = 15.0
"""A service is started again this long after its last start; the wait doubles while it dies young."""

YOUNG_S = 20.0


@dataclass
class Service:
    """One service process and where it answers."""

    stage: Stage
    index: int
    port: int
    child: Child
    started_s: float
    wait_s: float = RESTART_AFTER_S
    """How long after its start it is started again, should it have died."""

    @property
    def name(self) -> str:
        """`stt`, `stt-2`, …"""
        return service_name(self.stage, self.index)


def service_name(stage: Stage, index: int) -> str:
    """`stt` for number 0, `stt-2` for number 1, …"""
    return stage if index == 0 else f"{stage}-{index + 1}"


class Mesh:
    """Start it, look after it with `tend`, stop it. All calls block and belong to the main thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        workers: Mapping[Stage, int] | None = None,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        servers: EmbeddedServers | None = None,
    ) -> None:
        """`servers`: running ones to use; None: NATS_URL and VALKEY_URL where set, else embedded ones.

        `env`: added to the services' environment.
        """
        self._settings = settings
        self._workers = {**DEFAULT_WORKERS, **(workers or {})}
        self._data_dir = data_dir
        self._extra_env = dict(env or {})
        self._given = servers
        self._servers: EmbeddedServers | None = None
        self._scratch: Scratch | None = None
        self._env: dict[str, str] = {}
        self.preferred_ports = (NatsServer.default_port, ValkeyServer.default_port)
        """Where the embedded servers listen when these are free; 0: anywhere."""
        self.pause: Callable[[float], object] = clock.sleep_s
        """How it waits, seconds. What this raises ends the start, or the tending."""
        self.services: list[Service] = []
        self.restarts = 0
        """Services that died and were started again."""

    @property
    def url(self) -> str:
        """The transport service."""
        return f"http://{self._settings.host}:{self._settings.port('transport')}"

    @property
    def servers(self) -> EmbeddedServers | None:
        """The embedded servers, where there are any."""
        return self._given or self._servers

    @property
    def log_dir(self) -> Path:
        """Where the services' logs are."""
        if self._scratch is None:
            raise MeshError("the mesh is not started", code="not_started")
        return self._scratch.subdir("logs")

    def start(self, *, spares: bool = True) -> None:
        """Start servers and services. Raises MeshError, naming the port that is taken or the server that is missing.

        `spares`: False: only the first worker of each stage, which is ready sooner; then `start_spares`.
        """
        self._check_ports()
        self._scratch = Scratch()
        self._env = self._surroundings()
        self._find_servers()
        self._launch_range(0, 1)
        if spares:
            self.start_spares()

    def start_spares(self) -> None:
        """Start every further worker."""
        self._launch_range(1, max(self._workers.values()))

    def _launch_range(self, first: int, end: int) -> None:
        for index in range(first, end):
            for stage in START_ORDER:
                if index < self._workers[stage]:
                    self.services.append(self._launch(stage, index))
                    self.pause(0)

    def wait_ready(self, on_ready: Callable[[Service], None] = lambda service: None) -> None:
        """Return when every started service is ready; `on_ready` is called for each that was not yet.

        Raises MeshError with the last words of one that ended, or the names of those that take too long.
        """
        deadline_s = clock.monotonic_s() + READY_S
        waiting = list(self.services)
        while waiting:
            for service in list(waiting):
                if service.child.poll() is not None:
                    raise MeshError(
                        f"the {service.name} service has ended:\n{self.last_words(service)}", code="service_failed"
                    )
                if self.is_ready(service):
                    waiting.remove(service)
                    on_ready(service)
                self.pause(0)
            if waiting and clock.monotonic_s() > deadline_s:
                names = ", ".join(service.name for service in waiting)
                raise MeshError(
                    f"not ready after {READY_S:.0f} s: {names}. The last words of {waiting[0].name}:\n"
                    f"{self.last_words(waiting[0])}",
                    code="service_failed",
                )
            self.pause(POLL_S if waiting else 0)

    def is_ready(self, service: Service) -> bool:
        """Whether the service takes work and, for transport, knows every started worker of every stage."""
        body = self._ready_body(service)
        if not body.get("ready"):
            return False
        known = body.get("workers")
        if service.stage != "transport" or not isinstance(known, dict):
            return True
        return all(known.get(s, 0) >= sum(one.stage == s for one in self.services) for s in STAGES if s in known)

    def providers(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """The providers of a stage by name: `available`, and `detail` about what answers or what is missing."""
        found = self._ready_body(self.find(stage)).get("providers")
        return found if isinstance(found, dict) else {}

    def _ready_body(self, service: Service) -> dict[str, Any]:
        """What the service answers to `/ready`; empty when it does not."""
        connection = http.client.HTTPConnection(self._settings.host, service.port, timeout=2)
        try:
            connection.request("GET", "/ready")
            found = msgspec.json.decode(connection.getresponse().read())
        except (OSError, http.client.HTTPException, msgspec.MsgspecError):
            return {}
        finally:
            connection.close()
        return found if isinstance(found, dict) else {}

    def tend(self) -> list[str]:
        """Start again what has died, embedded servers too. Returns the names. Call it now and then."""
        again = []
        for server in (self._servers.nats, self._servers.valkey) if self._servers is not None else ():
            if not server.running():
                server.restart()
                again.append(server.name)
        for i, service in enumerate(self.services):
            age_s = clock.monotonic_s() - service.started_s
            if service.child.poll() is None or age_s < service.wait_s:
                continue
            self.services[i] = self._launch(service.stage, service.index)
            if age_s < YOUNG_S and service.child.poll() != 0:  # 0: it was drained
                self.services[i].wait_s = min(2 * service.wait_s, MOST_RESTART_AFTER_S)
            self.restarts += 1
            again.append(service.name)
        return again

    def find(self, stage: Stage, index: int = 0) -> Service:
        """A service by stage and number."""
        return next(s for s in self.services if s.stage == stage and s.index == index)

    def stop(self) -> None:
        """Stop services and servers. Idempotent."""
        for service in self.services:
            service.child.send(signal.SIGINT)
            service.child.send(signal.SIGCONT)
        deadline_s = clock.monotonic_s() + STOP_S
        for service in self.services:
            service.child.wait(max(0.0, deadline_s - clock.monotonic_s()))
        for service in self.services:
            service.child.send(signal.SIGKILL)
        for service in self.services:
            service.child.kill()
        self.services.clear()
        if self._servers is not None:
            self._servers.stop()
            self._servers = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def kill(self) -> None:
        """SIGKILL services and servers, wait for none; for a process that ends itself now."""
        for service in self.services:
            service.child.send(signal.SIGKILL)
        if self._servers is not None:
            self._servers.kill()
        if self._scratch is not None:
            self._scratch.remove()

    def last_words(self, service: Service) -> str:
        """Why it ended, in its own words: what it said to a person, else the end of its log."""
        path = self.log_dir / f"{service.name}.log"
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        said = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("meshag: ")), None)
        chosen = lines[-6:] if said is None else [lines[said].removeprefix("meshag: "), *lines[said + 1 :][:6]]
        return "\n".join(f"  {line}" for line in chosen) or "  (it wrote nothing)"

    def _surroundings(self) -> dict[str, str]:
        """The environment of the services."""
        assert self._scratch is not None
        env = {**os.environ, **self._extra_env}
        env["TMPDIR"] = str(self._scratch.subdir("tmp"))  # what a killed service leaves goes with the rest
        env["MESHAG_PORT_BASE"] = str(self._settings.port_base)
        env["MESHAG_HOST"] = self._settings.host
        env["MESHAG_ONE_MACHINE"] = "1"
        env.setdefault("MESHAG_LOG_FORMAT", "json")
        if env.get("PYTHONDONTWRITEBYTECODE") and "PYTHONPYCACHEPREFIX" not in env and not _compiled("aiohttp"):
            # Each process would compile all of its imports, at every start. What is compiled goes where no source is.
            del env["PYTHONDONTWRITEBYTECODE"]
            env["PYTHONPYCACHEPREFIX"] = str(default_cache_dir() / "bytecode")
        return env

    def _find_servers(self) -> None:
        """The servers given, else those of the settings, else embedded ones; an address that is set is kept."""
        named = self._settings.model_fields_set
        if self._given is None and not named >= {"nats_url", "valkey_url"}:
            self._servers = EmbeddedServers(
                self._data_dir, preferred_ports=self.preferred_ports, pause=lambda seconds: self.pause(seconds)
            )
            self._servers.start()
        servers = self.servers
        for name in ("nats_url", "valkey_url"):
            own = servers is None or (self._given is None and name in named)
            self._env[name.upper()] = getattr(self._settings if own else servers, name)

    def tell_servers(self) -> Path | None:
        """A file for shells: where the embedded servers are, with their passwords. None when there are none.

        Readable for this user alone, and gone with the mesh.
        """
        if self._servers is None or self._scratch is None:
            return None
        path = self._scratch.path / "servers.env"
        lines = [f"export {name}={shlex.quote(self._env[name])}\n" for name in ("NATS_URL", "VALKEY_URL")]
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.writelines(lines)
        return path

    def _check_ports(self) -> None:
        for stage in STAGES:
            for index in range(self._workers[stage]):
                port = self._settings.port(stage, index)
                if not is_free(self._settings.host, port):
                    owner = port_owner_hint(port)
                    raise MeshError(
                        f"port {port}, which the {service_name(stage, index)} service needs, is taken"
                        f"{f' by {owner}' if owner else ''}. Choose others: --port-base {self.free_port_base()}, "
                        "or set MESHAG_PORT_BASE",
                        code="port_taken",
                    )

    def free_port_base(self) -> int:
        """A port base with which every service's port is free now."""
        for base in range(self._settings.port_base % 1000 + 9000, 60_000, 1000):
            settings = self._settings.model_copy(update={"port_base": base})
            ports = [settings.port(stage, index) for stage in STAGES for index in range(self._workers[stage])]
            if all(is_free(self._settings.host, port) for port in ports):
                return base
        return self._settings.port_base + 1000

    def _launch(self, stage: Stage, index: int) -> Service:
        port = self._settings.port(stage, index)
        name = service_name(stage, index)
        # -P: a file in the user's directory that is called as a module of Python's is not to be imported.
        argv = [sys.executable, "-P", "-m", "meshag", "serve", stage, "--port", str(port)]
        child = Child.start(argv, name=name, env=self._env, log_path=self.log_dir / f"{name}.log")
        return Service(stage, index, port, child, clock.monotonic_s())


def _compiled(package: str) -> bool:
    """Whether the package's bytecode stands beside it."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.cached is not None and Path(spec.cached).exists()
