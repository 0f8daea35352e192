"""Taking a stream's messages to work them off: what is not acknowledged comes again, to whoever takes it then.

A durable pull consumer, shared by all processes under one name.
"""

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog
from nats.aio.msg import Msg

from meshag.bus.connection import Bus, Subscription
from meshag.bus.jetstream import ask, place_of
from meshag.errors import BusError

log = structlog.get_logger("meshag.bus")

PULL_S = 5.0
"""A request for messages is made anew after so long."""

BATCH = 100


class Taken(msgspec.Struct, frozen=True):
    """A message in our hands."""

    sequence: int
    """Its number in the stream."""

    data: bytes
    message_id: str
    """What its publisher called it."""

    receipt: str
    """Where to say what became of it."""


class Durable:
    """One process's part in a durable consumer."""

    def __init__(self, bus: Bus, stream: str, name: str, *, ack_wait_s: float, most: int, forget_s: float) -> None:
        """`ack_wait_s`: what is neither acknowledged nor `held` for so long comes again. `most`: messages in hands.

        `forget_s`: when nobody has taken anything for so long, the consumer is forgotten.
        """
        self._bus = bus
        self._stream = stream
        self._name = name
        self._config = {
            "durable_name": name,
            "name": name,
            "deliver_policy": "new",
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait_s * 1e9),
            "max_ack_pending": most,
            "inactive_threshold": int(forget_s * 1e9),
        }
        self._subscription: Subscription | None = None
        self._puller: asyncio.Task[None] | None = None
        self._wanted = 0
        self._there = False
        self._more = asyncio.Event()
        self._forget: Callable[[], None] | None = None

    async def declare(self) -> None:
        """Make the consumer if it is missing: what is published from now on is for it. Raises BusError."""
        api = f"CONSUMER.CREATE.{self._stream}.{self._name}"
        await ask(self._bus, api, {"stream_name": self._stream, "config": self._config})

    async def unsettled(self) -> int:
        """How many messages are in anybody's hands. Raises BusError."""
        found = await ask(self._bus, f"CONSUMER.INFO.{self._stream}.{self._name}")
        return int(found["num_ack_pending"])

    async def start(self, deliver: Callable[[Taken], None]) -> None:
        """Take messages from now on, as they come. Raises BusError."""
        inbox = self._bus.new_inbox()
        self._subscription = await self._bus._subscribe(inbox, lambda message: self._take(message, deliver))
        self._forget = self._bus.on_reconnect(self._more.set)
        self._puller = asyncio.create_task(self._pull(inbox))

    async def aclose(self) -> None:
        """Take no more. What is in our hands comes again, to somebody else. Idempotent."""
        if self._forget is not None:
            self._forget()
        if self._puller is not None:
            self._puller.cancel()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def done(self, taken: Taken) -> None:
        """It has been worked off."""
        await self._say(taken, b"+ACK")

    async def held(self, taken: Taken) -> None:
        """It is still being worked on."""
        await self._say(taken, b"+WPI")

    async def given_back(self, taken: Taken) -> None:
        """Somebody else may have it at once."""
        await self._say(taken, b"-NAK")

    async def _say(self, taken: Taken, word: bytes) -> None:
        try:
            await self._bus.publish(taken.receipt, word)
        except BusError as error:
            log.warning("receipt_lost", stream=self._stream, error=str(error))  # it comes again

    def _take(self, message: Msg, deliver: Callable[[Taken], None]) -> None:
        headers: Mapping[str, str] = message.headers or {}
        if "Status" in headers:  # the request is over: nothing came in time, or the consumer is gone
            self._there = headers["Status"] == "408"
            self._more.set()
            return
        self._wanted -= 1
        if self._wanted <= 0:
            self._more.set()
        place = place_of(message.reply)
        if place is not None:
            deliver(Taken(place.sequence, message.data, headers.get("Nats-Msg-Id", ""), message.reply))

    async def _pull(self, inbox: str) -> None:
        api = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        question = msgspec.json.encode({"batch": BATCH, "expires": int(PULL_S * 1e9)})
        while True:
            self._more.clear()
            try:
                if not self._there:
                    await self.declare()
                    self._there = True
                self._wanted = BATCH
                await self._bus.publish(api, question, reply=inbox)
                async with asyncio.timeout(PULL_S * 1.5):
                    await self._more.wait()
            except TimeoutError:
                self._there = False
            except BusError as error:
                self._there = False
                log.warning("nothing_taken", stream=self._stream, error=str(error))
                await asyncio.sleep(0.5)
