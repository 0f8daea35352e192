"""Recording a session: what its journal holds, and with `follow` what comes, until it ends.

The journal is read beside the call, a few times a second, for each frame with its number and the server's time. A plain
subscription hears the same frames: it wakes the reader at the session's end, and what the journal did not take (its
disk is full, say) is recorded as it was heard. Nobody in the call waits for either.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable

import structlog

from meshag import clock
from meshag.bus.connection import Bus, Subscription
from meshag.bus.journal import Journal
from meshag.errors import MeshError, SessionError
from meshag.frames import ConfigChanged, SessionEnded
from meshag.ids import SessionId
from meshag.recording.file import CONTROL, KINDS, Configured, Framed, Owner, Said, State, Writer
from meshag.sessions.store import SessionRecord, SessionStore, no_session
from meshag.subjects import STAGES
from meshag.turns.history import decode as decode_exchange

log = structlog.get_logger("meshag.recording")

LOOK_S = 0.5
"""How often the journal is read. It keeps audio for a minute, and all of a session for two seconds after its end."""

UNSTORED_S = 5.0
"""A frame that was heard so long ago and is not in the journal will not be."""

CHECK_S = 5.0
"""How often it is asked whether the session is still there."""

BATCH = 500
KNOWN = 50_000
"""Frames remembered, so that one that is heard again is not taken for another: more than ten minutes."""


class Recorder:
    """Records one session. `snapshot()` it, or `follow()` it."""

    def __init__(self, bus: Bus, store: SessionStore, session: SessionId, writer: Writer) -> None:
        self._bus, self._store, self._session, self._writer = bus, store, session, writer
        self._journal = Journal(bus)
        self._sequences = dict.fromkeys(KINDS, 0)
        self._heard: OrderedDict[tuple[str, bytes], tuple[int, bytes]] = OrderedDict()
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._said: dict[int, bytes] = {}
        self._version = 0
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._reason = ""
        self._read_ns = 0
        """When the last reading of the whole journal began: what was heard later may be there by now."""
        self.missed = 0
        """Frames that were heard and are not in the journal."""

    async def snapshot(self) -> None:
        """Everything that the journal holds now. Raises SessionError when nothing is known of the session."""
        await self._begin()
        await self._read_all()
        if not self._version and not self._writer.frames:
            raise no_session(self._session)
        await self._read_history()

    def stop(self) -> None:
        """End `follow` soon."""
        self._stop.set()
        self._wake.set()

    async def follow(self) -> str:
        """What the journal holds, then all that comes, until the session ends or `stop`. Returns why it ended.

        Raises SessionError when nothing is known of the session, OSError when the file takes no more.
        May be cancelled at any await.
        """
        hearing = [await self._bus.subscribe(f"{kind}.{self._session}", self._listener(kind)) for kind in KINDS]
        try:
            await self.snapshot()
            self._writer.flush()
            await self._go_on()
        finally:
            await self._close(hearing)
        return self._reason or "stopped"

    async def _close(self, hearing: list[Subscription]) -> None:
        for subscription in hearing:
            await subscription.close()

    async def _go_on(self) -> None:
        checked_s = clock.monotonic_s()
        while not self._stop.is_set() and not self._reason:
            self._wake.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await self._look()
            if clock.monotonic_s() - checked_s > CHECK_S:
                checked_s = clock.monotonic_s()
                await self._check()
        if self._reason:
            await asyncio.sleep(LOOK_S)  # its owners may still say a word
        await self._look()
        self._write_unstored(clock.wall_ns())

    async def _look(self) -> None:
        began_ns = clock.wall_ns()
        try:
            await self._read_all()
            self._read_ns = began_ns
            await self._read_history()
        except MeshError as error:  # a server is away: what was heard meanwhile is kept
            log.warning("recording_waits", session=self._session, error=str(error))
        self._write_unstored(self._read_ns - int(UNSTORED_S * 1e9))
        self._writer.flush()

    async def _check(self) -> None:
        try:
            gone = await self._store.remaining_s(self._session) is None
            if gone and self._version:  # else it was flushed, or expired while nobody was connected
                self._reason = "ended" if await self._store.has_ended(self._session) else self._reason
        except MeshError as error:
            log.warning("recording_waits", session=self._session, error=str(error))

    # -- what is in Valkey --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        try:
            record = await self._store.load(self._session)
        except SessionError:
            return  # it has ended: what the journal still holds is all there is
        self._writer.write(State(record.status, record.created_at_s, record.ttl_s))
        self._write_config(record)
        for stage in STAGES:
            lease = await self._store.lease(self._session, stage)
            if lease is not None:
                self._writer.write(Owner(stage, lease.worker, lease.epoch))

    def _write_config(self, record: SessionRecord) -> None:
        if record.version > self._version:
            self._version = record.version
            request = record.request.model_dump(by_alias=True, mode="json")
            self._writer.write(Configured(record.version, request, clock.wall_ns()))

    async def _read_history(self) -> None:
        for exchange in await self._store.history(self._session):
            turn = decode_exchange(exchange).turn
            if self._said.get(turn) != exchange:
                self._said[turn] = exchange
                self._writer.write(Said(turn, exchange))

    # -- what is on NATS ----------------------------------------------------------------------------------------------

    def _listener(self, kind: str) -> Callable[[bytes], None]:
        def listen(data: bytes) -> None:
            key = (kind, hashlib.blake2b(data, digest_size=12).digest())
            if key not in self._known:
                self._heard.setdefault(key, (clock.wall_ns(), data))
            if kind == CONTROL:
                self._wake.set()

        return listen

    async def _read_all(self) -> None:
        for kind in KINDS:
            await self._read_kind(kind)

    async def _read_kind(self, kind: str) -> None:
        subject = f"{kind}.{self._session}"
        if any(key[0] == kind for key in self._heard) and self._sequences[kind]:
            newest = await self._journal.newest(subject)
            if 0 < newest < self._sequences[kind]:
                self._sequences[kind] = 0  # the stream was deleted and made anew
        while stored := await self._journal.stored(subject, self._sequences[kind], BATCH):
            for message in stored:
                self._sequences[kind] = message.sequence
                await self._take(Framed(kind, message.sequence, message.at_ns, message.payload))

    async def _take(self, framed: Framed) -> None:
        key = (framed.subject, hashlib.blake2b(framed.payload, digest_size=12).digest())
        self._heard.pop(key, None)
        if key in self._known and framed.sequence:
            return  # stored twice, or the stream was read again from its beginning
        self._remember(key)
        self._writer.write(framed)
        if framed.subject != CONTROL:
            return
        frame = framed.frame()
        if isinstance(frame, SessionEnded):
            self._reason = frame.reason
        elif isinstance(frame, ConfigChanged) and frame.version > self._version:
            try:
                self._write_config(await self._store.load(self._session))
            except MeshError as error:
                log.warning("config_unread", session=self._session, error=str(error))

    def _remember(self, key: tuple[str, bytes]) -> None:
        self._known[key] = None
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _write_unstored(self, until_ns: int) -> None:
        """What was heard until then and did not come into the journal."""
        for key, (at_ns, payload) in list(self._heard.items()):
            if at_ns > until_ns:
                break
            del self._heard[key]
            self._remember(key)
            self.missed += 1
            self._writer.write(Framed(key[0], 0, at_ns, payload))


async def record(
    nats_url: str, valkey_url: str, session: SessionId, writer: Writer, *, stop: asyncio.Event | None = None
) -> tuple[str, int]:
    """Connect, record, disconnect. Without `stop` a snapshot; with it the session is followed until it is set.

    Returns why it ended and how many frames were heard only. Raises BusError, StoreError, SessionError, OSError.
    """
    store = await SessionStore.connect(valkey_url, allow_volatile=True)
    try:
        bus = await Bus.connect(nats_url, name="meshag/record")
        try:
            recorder = Recorder(bus, store, session, writer)
            if stop is None:
                await recorder.snapshot()
                return "snapshot", 0
            stopping = asyncio.create_task(_when(stop, recorder))
            try:
                return await recorder.follow(), recorder.missed
            finally:
                stopping.cancel()
        finally:
            await bus.close()
    finally:
        await store.aclose()


async def _when(stop: asyncio.Event, recorder: Recorder) -> None:
    await stop.wait()
    recorder.stop()
