"""Following a stream live: every message with its number, in order, each once, however the connection fares.

An ordered consumer: JetStream counts what it sends us and repeats nothing. A hole in its count, a heartbeat that does
not come or a new connection, and another consumer is made that begins after the last message.
"""

import asyncio
import secrets
from collections.abc import Callable

import structlog
from nats.aio.msg import Msg

from meshag import clock
from meshag.bus.connection import Bus, Subscription
from meshag.bus.jetstream import ask, bounds, place_of
from meshag.errors import BusError

log = structlog.get_logger("meshag.bus")

HEARTBEAT_S = 1.0
"""JetStream says that it is there after so much silence."""

MISSED = 3
"""So many of those missing: the consumer is gone."""

AGAIN_S = 0.25


class Follower:
    """Make it, `start()` it, and later `aclose()` it."""

    def __init__(self, bus: Bus, stream: str, deliver: Callable[[int, bytes], None], lost: Callable[[], None]) -> None:
        """`deliver`: takes a message with its number; must not block.

        `lost`: called when messages after the last one are no longer there, or the stream has begun anew.
        """
        self._bus = bus
        self._stream = stream
        self._deliver = deliver
        self._lost = lost
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._deliveries = 0
        self._heard_ns = 0
        self._broken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._forget = bus.on_reconnect(self._broken.set)
        self.last = 0
        """The number of the last message that was delivered; at first, of the last one there was."""

    async def start(self) -> None:
        """Hear what comes from now on. Raises BusError."""
        self.last = (await bounds(self._bus, self._stream)).last
        await self._begin()
        self._keeper = asyncio.create_task(self._keep())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        self._forget()
        if self._keeper is not None:
            self._keeper.cancel()
        await self._end()

    async def _begin(self) -> None:
        await self._end()
        there = await bounds(self._bus, self._stream)
        if there.last < self.last or there.first > self.last + 1:
            self.last = there.last
            self._lost()
        consumer = self._consumer = secrets.token_hex(8)
        self._deliveries, self._heard_ns = 0, clock.monotonic_ns()
        self._broken.clear()
        inbox = self._bus.new_inbox()
        self._subscription = await self._bus._subscribe(inbox, lambda message: self._take(consumer, message))
        config = {
            "name": consumer,
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.last + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "inactive_threshold": int(10 * HEARTBEAT_S * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        api = f"CONSUMER.CREATE.{self._stream}.{consumer}"
        await ask(self._bus, api, {"stream_name": self._stream, "config": config, "action": "create"})

    async def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:  # the consumer notices within its `inactive_threshold`
            await subscription.close()

    def _take(self, consumer: str, message: Msg) -> None:
        if consumer != self._consumer or self._broken.is_set():
            return
        self._heard_ns = clock.monotonic_ns()
        headers = message.headers or {}
        if "Status" in headers:  # a heartbeat: it tells how much it has sent
            if int(headers.get("Nats-Last-Consumer", self._deliveries)) != self._deliveries:
                self._broken.set()
            return
        place = place_of(message.reply)
        if place is None or place.delivery != self._deliveries + 1:
            self._broken.set()
            return
        self._deliveries, self.last = place.delivery, place.sequence
        self._deliver(place.sequence, message.data)

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._broken.wait()
            except TimeoutError:
                if clock.monotonic_ns() - self._heard_ns < MISSED * HEARTBEAT_S * 1e9:
                    continue
            if self._bus.settled:
                try:
                    await self._begin()
                    continue
                except BusError as error:
                    log.warning("follower_stopped", stream=self._stream, error=str(error))
            self._broken.set()
            await asyncio.sleep(AGAIN_S)
