"""What one listener hears of one producer: in order, each frame once, none missing, none from a replaced owner."""

import asyncio
from collections.abc import Callable

import structlog

from meshag import clock, subjects
from meshag.bus.connection import Bus, Subscription
from meshag.bus.journal import Journal, source_of
from meshag.errors import BusError, WireError
from meshag.frames import AnyFrame, Unknown, decode

log = structlog.get_logger("meshag.bus")

HELD = 4_000
"""Frames held while a gap is being healed; of more, the journal has the rest."""

PATIENCE_MS = 2_500
"""A gap that the journal cannot fill is given up after this long: its producer sends again what was not stored."""

MEDIA_PATIENCE_MS = 300
"""The same for audio, which is worth nothing later."""

AGAIN_MS = 500
"""After a reconnect the journal is read once more: a frame may be stored later than it was delivered to others."""


class Inlet:
    """One subject, one producer at a time.

    `push` takes frames as they come. The next in order is delivered at once. A gap is healed from the journal while
    later frames wait; frames that do not come within the patience are counted as lost and skipped.
    """

    def __init__(
        self,
        bus: Bus,
        subject: str,
        deliver: Callable[[AnyFrame], None],
        *,
        paced: bool = False,
        source: str | None = None,
        patience_ms: int | None = None,
    ) -> None:
        """`paced`: the subject carries one frame in 20 ms, so the journal need not be read from its beginning.
        `source`: the one producer to hear of those that share the subject.
        `patience_ms`: for a gap; None: what befits the subject's class.
        """
        self._source = source
        self._bus = bus
        self._journal = Journal(bus)
        self._subject = subject
        self._deliver = deliver
        self._paced = paced
        self._media = subjects.stream_of(subject) in subjects.MEDIA
        if patience_ms is None:
            patience_ms = MEDIA_PATIENCE_MS if self._media else PATIENCE_MS
        self._patience_ns = patience_ms * clock.MS
        self._held: list[AnyFrame] | None = None
        self._opening = False
        self._healing: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None
        self._closed = False
        self.epoch = 0
        """The producer's epoch; frames of older ones are dropped."""
        self.next = 0
        """The sequence number that comes next."""
        self._joined = False
        self.healed = self.lost = self.stale = 0

    async def open(self, *, hold: bool = False) -> None:
        """Start to listen. `hold`: keep frames back until `replay` has been called."""
        if hold:
            self._held, self._opening = [], True
        self._subscription = await self._bus.subscribe(self._subject, self._on_message)
        self._forget = self._bus.on_reconnect(self.heal)

    async def aclose(self) -> None:
        """Stop to listen. Idempotent."""
        self._closed = True
        if self._forget:
            self._forget()
        if self._healing:
            self._healing.cancel()
        if self._subscription:
            await self._subscription.close()

    @property
    def holding(self) -> bool:
        """Whether frames are kept back until `replay`."""
        return self._opening

    def start_after(self, epoch: int, seq: int) -> None:
        """Everything up to and including this frame has been dealt with. `(0, -1)`: nothing yet, all is to be heard."""
        self.epoch, self.next, self._joined = epoch, seq + 1, True

    async def start_live(self) -> None:
        """Everything said before this inlet was opened has been dealt with. Raises BusError."""
        last = await self._journal.last(self._subject)
        first = min(self._held or (), key=_place, default=None)
        if first is not None:
            self.start_after(first.epoch, first.seq - 1)
        elif last is not None:
            self.start_after(last.epoch, last.seq)
        else:
            self.start_after(0, -1)

    def replay(self, frames: list[AnyFrame]) -> None:
        """Deliver frames read from the journal, then those held since `open`, then go on live."""
        held, self._held, self._opening = self._held or [], None, False
        for frame in sorted(frames, key=_place):
            self._skip_to(frame)
        for frame in sorted(held, key=_place):
            self.push(frame)

    def fence(self, epoch: int) -> None:
        """The producer has been replaced: drop what the old one may still say.

        Not while a gap is healed: what the old one said in time may be missing, and the new one does not say it again.
        """
        if epoch > self.epoch and self._held is None:
            self.epoch, self.next, self._joined = epoch, 0, True

    def push(self, frame: AnyFrame) -> None:
        """Take a frame as it came."""
        if self._held is not None:
            if len(self._held) < HELD:
                self._held.append(frame)
        elif self._is_next(frame):
            self._give(frame)
        elif _place(frame) >= (self.epoch, self.next):
            self._held = [frame]
            self.heal()

    def heal(self) -> None:
        """Read what is missing from the journal. Called by itself on a gap, and after every reconnect."""
        if self._closed or self._opening or not self._joined or (self._healing and not self._healing.done()):
            return
        gap = self._held is not None
        if self._held is None:
            self._held = []
        self._healing = asyncio.get_running_loop().create_task(self._heal(gap))

    def _on_message(self, data: bytes) -> None:
        try:
            frame = decode(data)
        except WireError as error:
            log.warning("frame_unknown", subject=self._subject, error=str(error))
            return
        if isinstance(frame, Unknown):
            log.info("frame_of_newer_version", subject=self._subject, kind=frame.kind)
        self.push(frame)

    def _is_next(self, frame: AnyFrame) -> bool:
        if not self._joined:
            self.epoch, self.next, self._joined = frame.epoch, frame.seq, True
        if frame.epoch > self.epoch and frame.seq == 0:
            self.epoch, self.next = frame.epoch, 0
        if frame.epoch < self.epoch:
            self.stale += 1
            return False
        return frame.epoch == self.epoch and frame.seq == self.next

    def _give(self, frame: AnyFrame) -> None:
        self.next += 1
        try:
            self._deliver(frame)
        except Exception as error:  # one bad frame must not silence the others
            log.error("frame_not_taken", subject=self._subject, error=type(error).__name__, exc_info=error)

    async def _heal(self, gap: bool) -> None:
        """Deliver what the journal and those held have in order, until nothing is missing or patience ends."""
        began_ns, wait_s = clock.monotonic_ns(), 0.02
        while True:
            try:
                frames = await self._read()
            except BusError as error:
                log.warning("heal_failed", subject=self._subject, error=str(error))
                frames = []
            before = (self.epoch, self.next)
            self._held = self._flow(frames, self._held or [])
            if (self.epoch, self.next) != before:
                began_ns = clock.monotonic_ns()
            if not self._held:
                break
            if not self._bus.connected:
                began_ns = clock.monotonic_ns()
            if clock.monotonic_ns() - began_ns > self._patience_ns:
                self._skip_to(self._held.pop(0))
            else:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 0.25)
        self._held = None
        if not gap and not self._media:  # nothing would tell that the newest frame is missing
            asyncio.get_running_loop().call_later(AGAIN_MS / 1000, self._look_again)

    def _look_again(self) -> None:
        if self._held is None and not self._closed:
            self._held = []
            self._healing = asyncio.get_running_loop().create_task(self._heal(gap=True))

    async def _read(self) -> list[AnyFrame]:
        newest = None
        if self._source is None and (self._paced or not self._held):
            last = await self._journal.last(self._subject)
            if last is None or _place(last) < (self.epoch, self.next):
                return []
            if self._paced:
                newest = last.seq + 50 - (self.next if last.epoch == self.epoch else 0)
        frames = await self._journal.read(self._subject, newest=newest)
        if self._source is not None:
            frames = [frame for frame in frames if source_of(frame) == self._source]
        return frames

    def _flow(self, stored: list[AnyFrame], held: list[AnyFrame]) -> list[AnyFrame]:
        """Deliver as far as no frame is missing. Returns what has to wait, in order."""
        live = {_place(frame): frame for frame in held}
        known = {_place(frame): frame for frame in stored} | live
        rest: list[AnyFrame] = []
        for place, frame in sorted(known.items()):
            if not rest and self._is_next(frame):
                self.healed += place not in live
                self._give(frame)
            elif place >= (self.epoch, self.next):
                rest.append(frame)
        return rest

    def _skip_to(self, frame: AnyFrame) -> None:
        """Deliver `frame` unless it is old; what is missing before it is lost."""
        if not self._is_next(frame):
            if _place(frame) < (self.epoch, self.next):
                return
            self.lost += frame.seq - (self.next if frame.epoch == self.epoch else 0)
            self.epoch, self.next = frame.epoch, frame.seq
        self._give(frame)


def _place(frame: AnyFrame) -> tuple[int, int]:
    return frame.epoch, frame.seq


class ControlInlet:
    """The control subject of a session: several producers, each in its own order.

    What the API says (`source` "api") may come from any transport service and is idempotent: it is delivered as it is.
    """

    def __init__(self, bus: Bus, subject: str, deliver: Callable[[AnyFrame], None]) -> None:
        self._bus = bus
        self._subject = subject
        self._deliver = deliver
        self._inlets: dict[str, Inlet] = {}
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None

    async def open(self) -> None:
        """Start to listen."""
        self._subscription = await self._bus.subscribe(self._subject, self._on_message)
        self._forget = self._bus.on_reconnect(self._heal)

    async def aclose(self) -> None:
        """Stop to listen. Idempotent."""
        if self._forget:
            self._forget()
        for inlet in self._inlets.values():
            await inlet.aclose()
        if self._subscription:
            await self._subscription.close()

    async def history(self) -> list[AnyFrame]:
        """What the journal holds of the session's control frames, oldest first. Raises BusError."""
        return await Journal(self._bus).read(self._subject)

    def _on_message(self, data: bytes) -> None:
        try:
            frame = decode(data)
        except WireError as error:
            log.warning("frame_unknown", subject=self._subject, error=str(error))
            return
        source = source_of(frame)
        if source is None or source == "api":
            self._deliver(frame)
            return
        inlet = self._inlets.get(source)
        if inlet is None:
            inlet = self._inlets[source] = Inlet(self._bus, self._subject, self._deliver, source=source)
        inlet.push(frame)

    def _heal(self) -> None:
        for inlet in self._inlets.values():
            inlet.heal()
