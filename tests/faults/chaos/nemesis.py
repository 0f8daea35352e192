"""Breaks things, with a seed: which fault, whom it hits and how long it lasts are drawn; when, the machine decides.

One fault after the other. Workers of different stages may be away at the same time, two of one stage only where all of
them are killed at once. While a server is away no worker is hit: a takeover needs both. Now and then nothing is broken
for a while.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from faults.chaos.history import History, now_ms
from faults.chaos.proxy import Proxy, Spoil
from meshag.embedded.mesh import Mesh, Service
from meshag.embedded.servers import EmbeddedServers
from meshag.subjects import Stage

STAGES: tuple[Stage, ...] = ("stt", "llm", "tts")

KINDS = {
    "killed": 60,
    "frozen": 8,
    "told to end": 8,
    "two killed": 5,
    "all killed": 2,
    "nats killed": 3,
    "nats frozen": 1,
    "valkey killed": 3,
    "valkey frozen": 2,
    "valkey slow": 2,
    "valkey reset": 3,
    "valkey half-open": 2,
    "valkey narrow": 2,
}
"""What can happen, and how often among a hundred or so."""

READY_S = 30.0
"""A worker that is not there again so long after its end fails the run."""


class Nemesis:
    """`run` it beside the callers. `owners` tells who owns what at the moment: session to stage to worker."""

    def __init__(
        self,
        mesh: Mesh,
        servers: EmbeddedServers,
        proxy: Proxy,
        history: History,
        owners: Callable[[], dict[str, dict[str, str]]],
        rng: random.Random,
        kinds: dict[str, int] | None = None,
        every_s: float = 0.8,
        stages: tuple[Stage, ...] = STAGES,
    ) -> None:
        """`kinds`: as KINDS; None: those. `every_s`: from one fault to the next, on the average.

        `stages`: whose workers are hit.
        """
        self._stages = stages
        self._mesh, self._servers, self._proxy, self._history = mesh, servers, proxy, history
        self._owners = owners
        self._rng = rng
        self._kinds = KINDS if kinds is None else kinds
        self._every_s = every_s
        self._workers: dict[int, str] = {}
        """Of the services that are ready: process id to worker id."""
        self._values: dict[int, dict[str, float]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._broken: set[str] = set()
        self.faults = 0

    # -- the mesh, as it is -------------------------------------------------------------------------------------------

    async def tend(self, stop: asyncio.Event) -> None:
        """Start again who has died, see who is ready, read the metrics, until `stop`."""
        while not stop.is_set():
            await asyncio.to_thread(self._tend)
            await asyncio.sleep(0.1)

    def _tend(self) -> None:
        for service in self._mesh.services:
            service.wait_s = 0.2
        self._mesh.tend()
        for service in list(self._mesh.services):
            if service.child.pid not in self._workers and service.child.poll() is None:
                body = self._mesh._ready_body(service)
                if body.get("ready"):
                    self._workers[service.child.pid] = str(body.get("worker"))
        self._scrape([service for service in self._mesh.services if service.stage == "transport"])

    def _scrape(self, services: list[Service]) -> None:
        """Write down what `/metrics` says, where it has changed."""
        for service in services:
            values = metrics_of(self._mesh, service)
            before = self._values.setdefault(service.child.pid, {})
            changed = {name: value for name, value in values.items() if before.get(name) != value}
            if changed:
                before.update(changed)
                self._history.note("metrics", service=service.name, pid=service.child.pid, values=changed)

    def scrape_all(self) -> None:
        """Every service that is there. Blocks."""
        self._scrape(list(self._mesh.services))

    def whole(self, stage: Stage) -> list[Service]:
        """The workers of a stage, when all of them are there and nothing is wrong with any; else none."""
        services = [service for service in self._mesh.services if service.stage == stage]
        fine = all(s.child.pid in self._workers for s in services)
        return services if fine and stage not in self._broken else []

    async def mended(self) -> None:
        """Return when everything is there and nothing is broken. TimeoutError when that takes too long."""
        async with asyncio.timeout(READY_S + 20):
            while self._under_way or not all(self.whole(stage) for stage in STAGES):
                await asyncio.sleep(0.1)

    # -- what is broken -----------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """One fault after the other until `stop`; then all is mended."""
        names = list(self._kinds)
        while not stop.is_set():
            await self._pause(stop, self._rng.uniform(0.3, 1.7) * self._every_s)
            if self._rng.random() < 0.1:
                await self._pause(stop, 3 * self._every_s)  # a calm while
            kind = self._rng.choices(names, [self._kinds[name] for name in names])[0]
            stage = self._rng.choice(self._stages)
            await self._begin(kind, stage, stop)
        await self.mended()

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass

    async def _begin(self, kind: str, stage: Stage, stop: asyncio.Event) -> None:
        if kind.startswith(("nats", "valkey")):
            while self._under_way and not stop.is_set():
                await asyncio.sleep(0.02)  # a takeover needs both servers: not while they are away
            await self._settled(stop)
            if not stop.is_set():
                self.faults += 1
                await self._server(kind)
            return
        order = [stage, *(other for other in self._stages if other != stage)]
        while not stop.is_set():
            ready = [one for one in order if self.whole(one)]
            if len(ready) >= (2 if kind == "two killed" else 1):
                break
            await asyncio.sleep(0.02)
        else:
            return
        if kind == "two killed":
            await asyncio.gather(*(self._worker("killed", one, "two killed") for one in ready[:2]))
        else:
            await self._worker(kind, ready[0], kind)

    async def _settled(self, stop: asyncio.Event) -> None:
        """Every takeover that is due has been."""
        while not stop.is_set() and not all(self.whole(stage) for stage in STAGES):
            await asyncio.sleep(0.05)

    async def _worker(self, kind: str, stage: Stage, called: str) -> None:
        """Hit a worker of the stage, one that has sessions where there is one."""
        owners = self._owners()
        services = self.whole(stage)
        busy = [s for s in services if any(o.get(stage) == self._workers[s.child.pid] for o in owners.values())]
        victims = services if kind == "all killed" else [self._rng.choice(busy or services)]
        for victim in victims:
            self.faults += 1
            worker = self._workers[victim.child.pid]
            sessions = [session for session, owned in owners.items() if owned.get(stage) == worker]
            fault = {"id": self.faults, "kind": called, "stage": stage, "worker": worker, "sessions": sessions}
            if kind == "frozen":
                self._spawn(self._freeze(victim, stage, fault))
            else:
                number = signal.SIGTERM if kind == "told to end" else signal.SIGKILL
                at_ms = now_ms()
                victim.child.send(number)
                if number is signal.SIGKILL:
                    self._workers.pop(victim.child.pid, None)
                self._spawn(self._gone(victim, stage, fault, at_ms))

    async def _gone(self, victim: Service, stage: Stage, fault: dict[str, Any], at_ms: float) -> None:
        self._broken.add(stage)
        try:
            async with asyncio.timeout(READY_S):
                while victim.child.poll() is None:
                    await asyncio.sleep(0.02)
                self._workers.pop(victim.child.pid, None)
                self._history.note("fault", at_ms=at_ms, until_ms=now_ms(), **fault)
        finally:
            self._broken.discard(stage)

    async def _freeze(self, victim: Service, stage: Stage, fault: dict[str, Any]) -> None:
        self._broken.add(stage)
        at_ms = now_ms()
        victim.child.freeze()
        try:
            await asyncio.sleep(self._rng.uniform(0.2, 2.5))
        finally:
            until_ms = now_ms()
            victim.child.thaw()
        self._history.note("fault", at_ms=at_ms, until_ms=until_ms, **fault)
        await asyncio.sleep(0.5)  # it looks at its leases
        self._broken.discard(stage)

    async def _server(self, kind: str) -> None:
        """Break a server or the way to it, wait, mend it."""
        rng, proxy = self._rng, self._proxy
        nats, valkey = self._servers.nats, self._servers.valkey
        breaks: dict[str, tuple[Callable[[], object], Callable[[], object], tuple[float, float]]] = {
            "nats killed": (nats.kill, nats.restart, (0.05, 1.0)),
            "nats frozen": (nats.freeze, nats.thaw, (0.2, 2.0)),
            "valkey killed": (valkey.kill, valkey.restart, (0.1, 2.0)),
            "valkey frozen": (valkey.freeze, valkey.thaw, (0.2, 3.0)),
            "valkey slow": (self._spoil(delay_s=rng.uniform(0.1, 1.0)), proxy.mend, (0.5, 3.0)),
            "valkey reset": (proxy.reset, proxy.mend, (0.0, 0.1)),
            "valkey half-open": (self._spoil(swallow=True), proxy.mend, (0.5, 3.0)),
            "valkey narrow": (self._spoil(bytes_per_s=2000), proxy.mend, (0.5, 3.0)),
        }
        break_it, mend_it, (least_s, most_s) = breaks[kind]
        fault = {"id": self.faults, "kind": kind, "stage": "", "worker": "", "sessions": list(self._owners())}
        at_ms = now_ms()
        try:
            await asyncio.to_thread(break_it)
            await asyncio.sleep(rng.uniform(least_s, most_s))
        finally:
            await asyncio.to_thread(mend_it)
        self._history.note("fault", at_ms=at_ms, until_ms=now_ms(), **fault)
        await asyncio.sleep(1.0)  # everybody connects anew

    def _spoil(self, **how: Any) -> Callable[[], None]:
        def spoil() -> None:
            self._proxy.spoil = Spoil(**how)

        return spoil

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Future[None]") -> None:
        self._under_way.discard(task)  # type: ignore[arg-type]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._history.note("crash", error=f"{type(error).__name__}: {error}")


def metrics_of(mesh: Mesh, service: Service) -> dict[str, float]:
    """What a service counts of what the checker wants to see."""
    import http.client

    connection = http.client.HTTPConnection(mesh._settings.host, service.port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(SEEN):
            found[name] = float(value)
    return found


SEEN = (
    "meshag_takeovers_total",
    "meshag_workers_gone_total",
    "meshag_bus_reconnects_total",
    "meshag_store_failures_total",
    "meshag_store_seconds_sum",
    "meshag_sessions_owned",
    "meshag_frames_total",
)
