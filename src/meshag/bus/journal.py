"""Reading the journal: frames that were published a moment ago.

Nobody reads it while all is well. It is read with JetStream's batched direct get (ADR-31): no consumer is made, and
150 frames take about 3 ms.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec

from meshag import subjects
from meshag.audio import FRAME_MS
from meshag.bus.connection import Bus
from meshag.errors import BusError, WireError
from meshag.frames import AnyFrame, decode

BATCH = 500
"""Messages asked for at once."""

BATCH_BYTES = 1024 * 1024
"""And no more than this where they may be long."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message as a stream holds it."""

    sequence: int
    """Its number in the stream."""

    at_ns: int
    """When the server stored it, Unix time, nanoseconds, by the server's clock."""

    payload: bytes


class _Read:
    """One batched direct get, as its answers arrive."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.sequences: list[int] = []
        self.times: list[str] = []
        self.next_sequence = 0
        self.time = ""
        self.pending = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(self, data: bytes, headers: dict[str, str]) -> None:
        if self.done.done():
            return
        status = headers.get("Status")
        if status is None:
            self.payloads.append(data)
            self.sequences.append(int(headers.get("Nats-Sequence", "0")))
            self.next_sequence = self.sequences[-1] + 1
            self.time = headers.get("Nats-Time-Stamp", "")
            self.times.append(self.time)
        elif status in ("204", "404"):  # end of batch; nothing there
            self.pending = int(headers.get("Nats-Num-Pending", "0"))
            self.done.set_result(None)
        else:
            self.done.set_exception(BusError(f"the journal refuses a read: {status} {headers.get('Description', '')}"))


class Journal:
    """Reads what the streams hold of one subject."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def read(self, subject: str, *, newest: int | None = None) -> list[AnyFrame]:
        """The frames on `subject` as a listener would have heard them, as far as they are kept. Raises BusError.

        Each producer's in order, each once, none of an old epoch after a newer one.

        `newest`: for caller audio, which comes one frame in 20 ms: only about this many of the newest.
        """
        request: dict[str, object] = {"seq": 1}
        if newest is not None:
            last = await self._get(subject, {"last_by_subj": subject}, single=True)
            if not last.payloads:
                return []
            request = {"start_time": _earlier(last.time, newest * FRAME_MS + 1000)}
        return _as_heard(list(_frames(await self._all(subject, request))))

    async def payloads(self, subject: str) -> list[bytes]:
        """The messages on `subject`, which may have wildcards, as they were sent, oldest first. Raises BusError."""
        return await self._all(subject, {"seq": 1})

    async def after(self, subject: str, sequence: int, most: int) -> list[tuple[int, bytes]]:
        """The messages on `subject` after number `sequence`, with their own, at most `most`. Raises BusError."""
        request = {"seq": sequence + 1, "next_by_subj": subject, "batch": most, "max_bytes": BATCH_BYTES}
        read = await self._get(subject, request)
        return list(zip(read.sequences, read.payloads, strict=True))

    async def stored(self, subject: str, sequence: int, most: int) -> list[Stored]:
        """Like `after`, each with the time at which it was stored. Raises BusError."""
        request = {"seq": sequence + 1, "next_by_subj": subject, "batch": most, "max_bytes": BATCH_BYTES}
        read = await self._get(subject, request)
        items = zip(read.sequences, read.times, read.payloads, strict=True)
        return [Stored(number, _unix_ns(time), payload) for number, time, payload in items]

    async def newest(self, subject: str) -> int:
        """The number of the newest message on `subject`; 0: there is none. Raises BusError."""
        read = await self._get(subject, {"last_by_subj": subject}, single=True)
        return read.sequences[-1] if read.sequences else 0

    async def _all(self, subject: str, request: dict[str, object]) -> list[bytes]:
        payloads: list[bytes] = []
        while True:
            read = await self._get(subject, request | {"next_by_subj": subject, "batch": BATCH})
            payloads += read.payloads
            if not read.pending or not read.payloads:
                return payloads
            request = {"seq": read.next_sequence}

    async def last(self, subject: str) -> AnyFrame | None:
        """The newest frame on `subject`. Raises BusError."""
        read = await self._get(subject, {"last_by_subj": subject}, single=True)
        return next(_frames(read.payloads), None)

    async def forget(self, subject: str) -> None:
        """Delete what is kept of `subject`. Raises BusError."""
        await self._bus.purge(subject)

    async def _get(self, subject: str, request: dict[str, object], *, single: bool = False) -> _Read:
        read = _Read()

        def deliver(data: bytes, headers: dict[str, str]) -> None:
            read.deliver(data, headers)
            if single and not read.done.done():
                read.done.set_result(None)

        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe_with_headers(inbox, deliver)
        try:
            api = f"$JS.API.DIRECT.GET.{subjects.stream_of(subject)}"
            await self._bus.publish(api, msgspec.json.encode(request), reply=inbox)
            async with asyncio.timeout(2):
                await read.done
        except TimeoutError:
            raise BusError(f"the journal does not answer for {subjects.stream_of(subject)}") from None
        finally:
            await subscription.close()
        return read


def source_of(frame: AnyFrame) -> str | None:
    """Who published a control frame; None on subjects with one producer."""
    return getattr(frame, "source", None) or None


def _as_heard(stored: list[AnyFrame]) -> list[AnyFrame]:
    """Frames may be stored late (sent again after a reconnect), twice (audio), or by an owner long replaced."""
    heard: dict[str | None, dict[tuple[int, int], AnyFrame]] = {}
    epochs: dict[str | None, int] = {}
    order: list[tuple[str | None, tuple[int, int]]] = []
    for number, frame in enumerate(stored):
        source, place = source_of(frame), (frame.epoch, frame.seq)
        if source == "api":
            place = (0, number)  # not numbered by its producer
        elif frame.epoch < epochs.get(source, 0):
            continue
        else:
            epochs[source] = frame.epoch
        theirs = heard.setdefault(source, {})
        if place not in theirs:
            theirs[place] = frame
            order.append((source, place))
    sorted_of = {source: iter(sorted(theirs.items(), key=lambda item: item[0])) for source, theirs in heard.items()}
    return [next(sorted_of[source])[1] for source, _ in order]


def _frames(payloads: list[bytes]) -> Iterator[AnyFrame]:
    for payload in payloads:
        try:
            yield decode(payload)
        except WireError:
            continue  # a newer version's frame: nothing that this one could use


def _earlier(time: str, ms: int) -> str:
    """An RFC 3339 time of the server's, `ms` earlier. Its clock alone counts."""
    moment = datetime.fromisoformat(time).astimezone(UTC) - timedelta(milliseconds=ms)
    return moment.isoformat().replace("+00:00", "Z")


def _unix_ns(time: str) -> int:
    """An RFC 3339 time of the server's, in nanoseconds since the Unix epoch. 0: it told none."""
    if not time:
        return 0
    whole, _, fraction = time.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    return seconds * 1_000_000_000 + int(f"{fraction:0<9}"[:9])
