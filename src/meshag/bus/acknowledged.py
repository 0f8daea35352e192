"""Turn messages: on their way at once, acknowledged by JetStream in the background, sent again until they are.

The receiver hears them over its plain subscription and never waits for the acknowledgement. A repeated message
carries the same id, so the stream stores it once, and receivers drop it by its sequence number.
"""

import asyncio
from dataclasses import dataclass

import msgspec
import structlog

from meshag import clock
from meshag.bus.connection import Bus, Subscription
from meshag.errors import BusError

log = structlog.get_logger("meshag.bus")

RESEND_MS = 1000
"""An unacknowledged message is sent again after this long."""

GIVE_UP_MS = 120_000
"""The stream's duplicate window: an older message could be stored twice."""


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    error: _Error | None = None


@dataclass(slots=True)
class _Message:
    subject: str
    data: bytes
    headers: dict[str, str]
    first_ns: int
    sent_ns: int = 0
    """0: it has yet to be sent."""


class Acknowledged:
    """Publishes turn messages for one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, _Message] = {}
        self._counter = 0
        self._inbox = bus.new_inbox()
        self._subscription: Subscription | None = None
        self._resender: asyncio.Task[None] | None = None
        self._forget = bus.on_reconnect(self._resend_now)
        self._urgent = asyncio.Event()
        self._behind = False
        """Earlier messages have to go first."""
        self.lost = 0
        """Messages given up."""

    async def start(self) -> None:
        """Listen for acknowledgements."""
        self._subscription = await self._bus._subscribe(f"{self._inbox}.*", self._acknowledge)
        self._resender = asyncio.create_task(self._resend())

    async def aclose(self) -> None:
        """Wait a moment for what is still unacknowledged, then stop."""
        for _ in range(50):
            if not self._waiting:
                break
            await asyncio.sleep(0.02)
        self._forget()
        if self._resender:
            self._resender.cancel()
        if self._subscription:
            await self._subscription.close()

    @property
    def waiting(self) -> int:
        """Messages not yet acknowledged."""
        return len(self._waiting)

    async def publish(self, subject: str, data: bytes, message_id: str) -> None:
        """Send, in the order of the calls; returns without waiting for the acknowledgement.

        While the connection is down messages wait here: were they buffered below, they would arrive before those that
        were lost with it.
        """
        self._counter += 1
        reply = f"{self._inbox}.{self._counter}"
        message = self._waiting[reply] = _Message(subject, data, {"Nats-Msg-Id": message_id}, clock.monotonic_ns())
        if self._behind or not self._bus.settled:
            self._behind = True
            return
        try:
            await self._send(reply, message)
        except BusError:
            self._behind = True

    def _acknowledge(self, answer: object) -> None:
        reply: str = answer.subject  # type: ignore[attr-defined]
        if (getattr(answer, "headers", None) or {}).get("Status") == "503":  # no stream: it is made, then sent again
            self._bus.refusal = "no stream captures turn messages"
            if reply in self._waiting:
                self._waiting[reply].sent_ns = 0
            self._urgent.set()
            return
        try:
            error = msgspec.json.decode(answer.data, type=_Ack).error  # type: ignore[attr-defined]
        except msgspec.MsgspecError:
            return
        if error is None:
            self._waiting.pop(reply, None)
            self._bus.refusal = None
        else:
            self._bus.refusal = f"{error.description} ({error.err_code})"

    def _resend_now(self) -> None:
        for message in self._waiting.values():
            message.sent_ns = 0
        self._behind = bool(self._waiting)
        self._urgent.set()

    async def _resend(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RESEND_MS / 1000 / 4):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            urgent = self._urgent.is_set()
            self._urgent.clear()
            if not self._bus.settled:
                continue
            try:
                if urgent and self._bus.refusal:
                    await asyncio.sleep(0.02)  # it may refuse again at once
                    await self._bus.redeclare()
                while self._late():
                    await self._resend_late()
                self._behind = False
            except BusError as error:
                log.warning("resend_failed", error=str(error))

    def _late(self) -> bool:
        now = clock.monotonic_ns()
        return any(now - message.sent_ns > RESEND_MS * clock.MS for message in self._waiting.values())

    async def _resend_late(self) -> None:
        now = clock.monotonic_ns()
        for reply, message in list(self._waiting.items()):
            if now - message.first_ns > GIVE_UP_MS * clock.MS:
                self._waiting.pop(reply, None)
                self.lost += 1
                log.error("message_given_up", subject=message.subject, reason=self._bus.refusal)
            elif now - message.sent_ns > RESEND_MS * clock.MS and reply in self._waiting:
                await self._send(reply, message)

    async def _send(self, reply: str, message: _Message) -> None:
        await self._bus.publish(message.subject, message.data, reply, message.headers)
        message.sent_ns = clock.monotonic_ns()
