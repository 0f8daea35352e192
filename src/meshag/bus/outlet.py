"""What one owner says on one subject: numbered, stamped with its epoch, held back while it may have been replaced."""

import asyncio
from collections import deque
from typing import Protocol, TypeVar

import msgspec

from meshag import clock
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.errors import BusError
from meshag.frames import Frame, encode

KEEP = 250
"""Media frames kept to be sent again after a reconnect: five seconds of audio."""

UNSURE_MS = 4_000
"""Frames sent this long before the connection was found to be lost may be lost: pings fail after three seconds."""

F = TypeVar("F", bound=Frame)


class Guard(Protocol):
    """Tells whether this process can still be sure of what it owns."""

    def sure(self) -> bool:
        """False after a freeze, until the leases have been checked."""
        ...


class Outlet:
    """Publishes the frames of one producer. Frames go out in the order of the calls."""

    def __init__(self, bus: Bus, subject: str, epoch: int, guard: Guard, acknowledged: Acknowledged | None) -> None:
        """`acknowledged`: for the turn class; None: the media class."""
        self._bus = bus
        self._subject = subject
        self._guard = guard
        self._acknowledged = acknowledged
        self._held: list[Frame] = []
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=KEEP)
        self._behind: deque[bytes] | None = None
        self._repeating: asyncio.Task[None] | None = None
        self._closed = False
        self._forget = bus.on_reconnect(self._again) if acknowledged is None else None
        self.epoch = epoch
        self.seq = 0
        """The next frame's number."""

    async def send(self, frame: F) -> F:
        """Number and publish `frame`; `at_ns` is now unless it is set. Returns the frame as it was sent."""
        stamped = msgspec.structs.replace(frame, seq=self.seq, epoch=self.epoch, at_ns=frame.at_ns or clock.wall_ns())
        self.seq += 1
        if self._closed:
            return stamped
        if self._held or not self._guard.sure():
            self._held.append(stamped)
        else:
            await self._publish(stamped)
        return stamped

    async def release(self) -> None:
        """Send what was held: the leases have been checked and are still ours."""
        while self._held:
            await self._publish(self._held[0])
            del self._held[:1]

    def close(self) -> None:
        """Say nothing more, not even what is held."""
        self._closed = True
        self._held.clear()
        self._recent.clear()
        if self._forget:
            self._forget()

    async def _publish(self, frame: Frame) -> None:
        data = encode(frame)
        if self._acknowledged is not None:
            message_id = f"{self._subject}/{frame.epoch}/{frame.seq}"
            if "source" in frame.__struct_fields__:
                message_id += f"/{frame.source}"  # type: ignore[attr-defined]
            await self._acknowledged.publish(self._subject, data, message_id)
            return
        self._recent.append((clock.monotonic_ns(), data))
        if self._behind is not None:
            self._behind.append(data)
        elif self._bus.settled:
            try:
                await self._bus.publish(self._subject, data)
            except BusError:
                pass  # the connection is down; the kept frames go out when it is back

    def _again(self) -> None:
        """After a reconnect: frames that were in flight when the connection broke may be lost, so repeat them."""
        since_ns = (self._bus.lost_at_ns or 0) - UNSURE_MS * clock.MS
        self._behind = deque(data for at_ns, data in self._recent if at_ns >= since_ns)
        if self._repeating is None or self._repeating.done():
            self._repeating = asyncio.get_running_loop().create_task(self._repeat())

    async def _repeat(self) -> None:
        try:
            while self._behind and not self._closed:
                await self._bus.publish(self._subject, self._behind[0])
                self._behind.popleft()
        except BusError:
            pass  # lost again; the next reconnect repeats all of it
        self._behind = None
