"""Which providers work, known to the whole fleet: one call's failure spares all the others.

    closed ──a call fails as the vendor's fault──▶ open ──a probe succeeds──▶ closed
       └───────────────── off ◀── an operator says so, and on again ──▶ ┘

Whatever a worker finds out, or an operator says, is published once: every worker hears it at once, and one that starts
later reads it from the stream, which keeps the newest word on each provider. While a provider is open no caller's turn
is spent on it. One worker of its stage, the first by name of those alive, tries it now and then with a piece of real
work (`trials.py`: the more of it the further the failed call had come), first soon, then more and more rarely, and
closes it again.
"""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
import structlog

from meshag import clock, subjects
from meshag.bus.connection import Bus, Subscription
from meshag.bus.journal import Journal
from meshag.connectors import trials
from meshag.connectors.contracts import Deadlines
from meshag.connectors.registry import Registry
from meshag.errors import (
    BusError,
    ConfigError,
    ConnectorError,
    MeshError,
    ProviderLimited,
    ProviderRejected,
)
from meshag.ids import WorkerId
from meshag.observe import metrics
from meshag.sessions.fleet import Fleet
from meshag.subjects import Stage

log = structlog.get_logger("meshag.breakers")

FIRST_WAIT_MS = 500
"""From a failure to the first probe; each further wait is twice as long."""

MOST_WAIT_MS = 4_000
"""No wait between two probes is longer, so that a provider that has healed is used again within five seconds."""

RELAPSE_MS = 30_000
"""A provider that fails again so soon after it was closed is probed more rarely than before."""

RELAPSE_MOST_WAIT_MS = 60_000
"""And no more rarely than this."""

NEVER = -1
"""In place of the number of relapses: an operator has closed it, and what was before does not count."""

LOOK_S = 0.1

State = Literal["closed", "open", "off"]
"""closed: it works, as far as is known. open: it failed. off: an operator wants it not to be asked."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Health(msgspec.Struct, array_like=True, frozen=True, tag="h"):
    """What a worker found out about a provider."""

    stage: str
    provider: str
    works: bool
    code: str = ""
    """Why it does not work: a code of `errors.py`."""
    at_ns: int = 0
    """Unix time of the finding, nanoseconds."""
    wait_ms: int = 0
    """From the failure to the first probe."""
    relapses: int = 0
    """How often it has failed shortly after it was closed."""
    options: bytes = b""
    """The options of the call that failed, JSON: a probe asks for the same."""
    midway: bool = False
    """A part of the answer had come: a probe must see a whole one."""
    deadlines: Deadlines | None = None
    """Of the call that failed."""


class Switch(msgspec.Struct, array_like=True, frozen=True, tag="s"):
    """What an operator says of a provider."""

    stage: str
    provider: str
    on: bool
    at_ns: int = 0


_decoder = msgspec.msgpack.Decoder(Health | Switch)

Key = tuple[str, str]
"""Stage and provider."""


def opens(error: MeshError) -> bool:
    """Whether a failure is the vendor's, and so everybody's: not one that this call's own options or words caused."""
    if isinstance(error, ProviderRejected):
        return error.code == "provider_unauthorized"
    return isinstance(error, ConnectorError)


class Breakers:
    """One worker's view of all providers of all stages. `start` it, and later `aclose` it."""

    def __init__(self, bus: Bus, fleet: Fleet, registry: Registry, stage: Stage, worker: WorkerId) -> None:
        """`stage`: whose providers this worker probes when it is its turn."""
        self._bus = bus
        self._fleet = fleet
        self._registry = registry
        self._stage = stage
        self._worker = worker
        self._health: dict[Key, Health] = {}
        self._off: dict[Key, Switch] = {}
        self._due_ns: dict[Key, int] = {}
        self._tries: dict[Key, int] = {}
        self._probing: dict[Key, asyncio.Task[None]] = {}
        self._changed: list[Callable[[str, str], None]] = []
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Hear what is said of providers from now on, and read what was said before. Raises BusError."""
        self._subscription = await self._bus.subscribe(subjects.PROVIDERS_ALL, self._on_news)
        self._forget = self._bus.on_reconnect(self._read_again)
        await self._read()
        self._watching = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        if self._forget:
            self._forget()
        tasks = [task for task in (self._watching, self._reading, *self._probing.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._subscription:
            await self._subscription.close()

    def on_change(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Call `callback` with stage and provider whenever a state changes. Returns what forgets it again."""
        self._changed.append(callback)

        def forget() -> None:
            if callback in self._changed:
                self._changed.remove(callback)

        return forget

    # -- asked in every turn ------------------------------------------------------------------------------------------

    def state(self, stage: str, provider: str) -> State:
        """What is known of a provider. One never heard of is closed: it may be asked."""
        key = (stage, provider)
        if key in self._off:
            return "off"
        health = self._health.get(key)
        return "closed" if health is None or health.works else "open"

    def told(self, stage: str, provider: str) -> dict[str, object]:
        """The state for people: `state`, and where it is not closed `code` and `since_ms` (Unix time)."""
        key, state = (stage, provider), self.state(stage, provider)
        if state == "closed":
            return {"state": state}
        at_ns = self._off[key].at_ns if state == "off" else self._health[key].at_ns
        code = "operator" if state == "off" else self._health[key].code
        return {"state": state, "code": code, "since_ms": at_ns // clock.MS}

    # -- what is found out --------------------------------------------------------------------------------------------

    def failed(self, provider: str, error: MeshError, options: bytes, deadlines: Deadlines | None = None) -> None:
        """A call to a provider of this worker's stage failed. Opens its breaker, here at once and soon everywhere.

        `options`, `deadlines`: of that call. Nothing happens where the failure is this call's own (`opens`), or that of
        this machine alone.
        """
        key = (str(self._stage), provider)
        if not opens(error) or not self._is_shared(provider) or self.state(*key) != "closed":
            return
        before, now_ns = self._health.get(key), clock.wall_ns()
        relapses = 0
        if before is not None and before.relapses >= 0 and now_ns - before.at_ns < RELAPSE_MS * clock.MS:
            relapses = before.relapses + 1
        wait_ms = min(FIRST_WAIT_MS * 2**relapses, RELAPSE_MOST_WAIT_MS)
        if isinstance(error, ProviderLimited) and error.retry_after_s is not None:
            wait_ms = max(wait_ms, int(error.retry_after_s * 1000))
        metrics.BREAKERS_OPENED.labels(self._stage, provider, error.code).inc()
        # An empty answer begins and ends well: only a whole one tells.
        midway = (isinstance(error, ConnectorError) and error.midway) or error.code == "provider_empty"
        log.warning("provider_open", stage=self._stage, provider=provider, code=error.code, midway=midway)
        self._say(
            Health(self._stage, provider, False, error.code, now_ns, wait_ms, relapses, options, midway, deadlines)
        )

    def switch(self, stage: Stage, provider: str, *, on: bool) -> None:
        """An operator's word: until the next one nobody asks this provider, or everybody may again, failed or not."""
        log.warning("provider_switched", stage=stage, provider=provider, on=on)
        now_ns = clock.wall_ns()
        self._say(Switch(stage, provider, on, now_ns))
        if on and self.state(stage, provider) == "open":
            self._say(Health(stage, provider, True, "", now_ns, relapses=NEVER))

    def _is_shared(self, provider: str) -> bool:
        try:
            return self._registry.get(self._stage, provider).shared
        except ConfigError:
            return False

    def _say(self, news: Health | Switch) -> None:
        if not _NAME.fullmatch(news.provider):
            return  # it would be another subject
        self._take(news)
        kind: Literal["health", "switch"] = "health" if isinstance(news, Health) else "switch"
        self._publish(subjects.provider(kind, news.stage, news.provider), msgspec.msgpack.encode(news))

    def _publish(self, subject: str, data: bytes) -> None:
        async def publish() -> None:
            try:
                await self._bus.publish(subject, data)
            except BusError as error:
                log.warning("provider_news_lost", error=str(error))

        task = asyncio.get_running_loop().create_task(publish())
        _publishing.add(task)
        task.add_done_callback(_publishing.discard)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _on_news(self, data: bytes) -> None:
        try:
            self._take(_decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.warning("provider_news_unknown")

    def _take(self, news: Health | Switch) -> None:
        key = (news.stage, news.provider)
        before = self.state(*key)
        if isinstance(news, Switch):
            if news.on:
                self._off.pop(key, None)
            else:
                self._off[key] = news
        elif news != self._health.get(key):
            self._health[key] = news
            self._tries[key] = 0
            self._due_ns[key] = clock.monotonic_ns() + news.wait_ms * clock.MS
        after = self.state(*key)
        metrics.BREAKER.labels(*key).set({"closed": 0, "open": 1, "off": 2}[after])
        if after != before:
            for callback in tuple(self._changed):
                callback(*key)

    async def _read(self) -> None:
        for data in await Journal(self._bus).payloads(subjects.PROVIDERS_ALL):
            self._on_news(data)

    def _read_again(self) -> None:
        """After a reconnect: what was said meanwhile."""

        async def read() -> None:
            try:
                await self._read()
            except BusError as error:
                log.warning("provider_news_unread", error=str(error))

        self._reading = asyncio.get_running_loop().create_task(read())

    # -- probes -------------------------------------------------------------------------------------------------------

    @property
    def _is_prober(self) -> bool:
        alive = [one.worker for one in self._fleet.workers(self._stage) if not one.draining]
        return self._worker == min([*alive, self._worker])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._is_prober:
                continue
            now_ns = clock.monotonic_ns()
            for key, health in list(self._health.items()):
                mine = key[0] == self._stage and not health.works and key not in self._probing
                if mine and now_ns >= self._due_ns[key]:
                    task = self._probing[key] = asyncio.create_task(self._probe(key, health))
                    task.add_done_callback(partial(self._probed, key))

    def _probed(self, key: Key, task: asyncio.Task[None]) -> None:
        self._probing.pop(key, None)

    async def _probe(self, key: Key, health: Health) -> None:
        stage, provider = key
        try:
            connector = self._registry.get(self._stage, provider)
            if not connector.availability().available:
                raise ConnectorError(f"{provider} cannot work here", code="provider_unknown")
            options = connector.options.model_validate_json(health.options or b"{}")
            deadlines = trials.patient(connector.deadlines, health.deadlines)
            trial = trials.keeps_on if health.midway else trials.begins
            await trial(connector, options, deadlines, provider)
        except Exception as error:  # whatever a connector raises: it does not work yet
            self._tries[key] += 1
            most_ms = MOST_WAIT_MS if health.relapses == 0 else max(MOST_WAIT_MS, health.wait_ms)
            wait_ms = min(FIRST_WAIT_MS * 2 ** self._tries[key], most_ms)
            if isinstance(error, ProviderLimited) and error.retry_after_s is not None:
                wait_ms = max(wait_ms, int(error.retry_after_s * 1000))
            self._due_ns[key] = clock.monotonic_ns() + wait_ms * clock.MS
            code = error.code if isinstance(error, MeshError) else type(error).__name__
            metrics.PROBES.labels(stage, provider, "failed").inc()
            log.info("provider_still_open", stage=stage, provider=provider, code=code, next_ms=wait_ms)
            return
        metrics.PROBES.labels(stage, provider, "passed").inc()
        if self._health.get(key) == health:
            log.warning("provider_closed", stage=stage, provider=provider)
            self._say(Health(stage, provider, True, "", clock.wall_ns(), 0, health.relapses))


_publishing: set[asyncio.Task[None]] = set()
"""Kept until they are done: the event loop alone would forget them."""
