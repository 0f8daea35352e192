"""What a listener hears, whatever the network does: each frame once, in order, and nothing of a replaced owner."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshag import subjects
from meshag.bus import inlet as inlet_module
from meshag.bus.inlet import ControlInlet, Inlet
from meshag.bus.journal import Journal
from meshag.errors import BusError
from meshag.frames import AnyFrame, AudioIn, ConfigChanged, Interrupt, Played, TextIn, encode
from meshag.ids import new_session_id

pytestmark = pytest.mark.unit

SESSION = new_session_id()
TURN, AUDIO, CONTROL = subjects.text_input(SESSION), subjects.audio_input(SESSION), subjects.control(SESSION)


class FakeSubscription:
    async def close(self) -> None:
        pass


class FakeBus:
    """Delivers what it is given by hand."""

    def __init__(self) -> None:
        self.connected = True
        self.deliver: Callable[[bytes], None]
        self.on_back: list[Callable[[], None]] = []

    async def subscribe(self, subject: str, deliver: Callable[[bytes], None]) -> FakeSubscription:
        self.deliver = deliver
        return FakeSubscription()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.on_back.append(callback)
        return lambda: self.on_back.remove(callback)


class FakeJournal:
    """Holds frames as they were stored."""

    def __init__(self, stored: list[AnyFrame]) -> None:
        self.stored = stored
        self.reads = 0
        self.broken = 0
        """Reads that fail first."""

    async def read(self, subject: str, *, newest: int | None = None) -> list[AnyFrame]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.broken:
            self.broken -= 1
            raise BusError("not now")
        return list(self.stored)

    async def last(self, subject: str) -> AnyFrame | None:
        await asyncio.sleep(0)
        return self.stored[-1] if self.stored else None


class Listener:
    """An inlet with a fake journal, and what it delivered."""

    def __init__(self, *, patience_ms: int = 0, **options: Any) -> None:
        self.heard: list[AnyFrame] = []
        self.bus = FakeBus()
        self.stored: list[AnyFrame] = []
        self.journal = FakeJournal(self.stored)
        self.inlet = Inlet(self.bus, TURN, self._take, patience_ms=patience_ms, **options)  # type: ignore[arg-type]
        self.inlet._journal = self.journal  # type: ignore[assignment]
        self.refuse: set[int] = set()

    def _take(self, frame: AnyFrame) -> None:
        self.heard.append(frame)
        if frame.seq in self.refuse:
            raise ValueError("a bug in a stage")

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(frame.epoch, frame.seq) for frame in self.heard]

    async def settle(self) -> None:
        """Until no gap is being healed."""
        async with asyncio.timeout(5):
            while self.inlet._healing is not None and not self.inlet._healing.done():
                await asyncio.sleep(0.001)


def frame(seq: int, epoch: int = 1) -> TextIn:
    return TextIn(seq=seq, epoch=epoch, text=f"{epoch}/{seq}")


# -- by example -------------------------------------------------------------------------------------------------------


async def test_the_next_frame_is_delivered_at_once():
    listener = Listener()
    for seq in range(3):
        listener.inlet.push(frame(seq))
        assert listener.places[-1] == (1, seq)
    assert listener.journal.reads == 0


async def test_a_gap_is_filled_from_the_journal_while_later_frames_wait():
    listener = Listener()
    listener.inlet.push(frame(0))
    listener.stored += [frame(seq) for seq in range(4)]
    listener.inlet.push(frame(3))
    assert listener.places == [(1, 0)]
    listener.inlet.push(frame(4))
    await listener.settle()
    assert listener.places == [(1, seq) for seq in range(5)]
    assert (listener.inlet.healed, listener.inlet.lost) == (2, 0)


async def test_a_frame_that_is_stored_late_is_waited_for():
    """After a reconnect the producer sends later frames before it repeats what the connection lost."""
    listener = Listener(patience_ms=5000)
    listener.inlet.push(frame(0))
    listener.inlet.push(frame(2))
    await asyncio.sleep(0.05)
    assert listener.places == [(1, 0)]
    listener.inlet.push(frame(1))  # heard, though out of order
    await listener.settle()
    listener.inlet.push(frame(4))
    await asyncio.sleep(0.05)
    listener.stored.append(frame(3))  # not heard, only stored
    await listener.settle()
    assert listener.places == [(1, seq) for seq in range(5)]
    assert listener.inlet.lost == 0


async def test_what_never_comes_is_counted_and_skipped():
    listener = Listener(patience_ms=40)
    listener.inlet.push(frame(0))
    listener.inlet.push(frame(3))
    await listener.settle()
    assert listener.places == [(1, 0), (1, 3)]
    assert listener.inlet.lost == 2
    listener.inlet.push(frame(1))
    assert listener.places == [(1, 0), (1, 3)]


async def test_patience_does_not_run_while_the_connection_is_down():
    listener = Listener(patience_ms=20)
    listener.inlet.push(frame(0))
    listener.bus.connected = False
    listener.inlet.push(frame(2))
    await asyncio.sleep(0.15)
    assert listener.places == [(1, 0)]
    listener.bus.connected = True
    listener.stored.append(frame(1))
    await listener.settle()
    assert listener.places == [(1, 0), (1, 1), (1, 2)]


async def test_a_journal_that_does_not_answer_is_asked_again():
    listener = Listener(patience_ms=5000)
    listener.inlet.push(frame(0))
    listener.journal.broken = 2
    listener.stored.append(frame(1))
    listener.inlet.push(frame(2))
    await listener.settle()
    assert listener.places == [(1, 0), (1, 1), (1, 2)]


async def test_a_new_owner_ends_the_old_one():
    listener = Listener()
    listener.inlet.push(frame(0))
    listener.inlet.push(frame(0, epoch=2))
    listener.inlet.push(frame(1))
    listener.inlet.push(frame(1, epoch=2))
    assert listener.places == [(1, 0), (2, 0), (2, 1)]
    assert listener.inlet.stale == 1


async def test_a_fenced_owner_is_silent_before_the_new_one_has_spoken():
    listener = Listener()
    listener.inlet.push(frame(0))
    listener.inlet.fence(2)
    listener.inlet.push(frame(1))
    listener.inlet.fence(1)
    listener.inlet.push(frame(0, epoch=2))
    assert listener.places == [(1, 0), (2, 0)]


async def test_what_the_old_owner_said_in_time_is_healed_though_it_has_been_replaced():
    listener = Listener(patience_ms=1000)
    listener.inlet.push(frame(0))
    listener.stored += [frame(0), frame(1), frame(2)]
    listener.inlet.heal()
    listener.inlet.fence(2)
    await listener.settle()
    listener.inlet.push(frame(0, epoch=2))
    assert listener.places == [(1, 0), (1, 1), (1, 2), (2, 0)]


async def test_after_a_reconnect_the_newest_is_not_missed():
    listener = Listener()
    await listener.inlet.open()
    listener.bus.deliver(encode(frame(0)))
    listener.stored += [frame(0), frame(1)]
    for callback in listener.bus.on_back:
        callback()
    await listener.settle()
    assert listener.places == [(1, 0), (1, 1)]
    await listener.inlet.aclose()
    assert not listener.bus.on_back


async def test_after_a_reconnect_the_journal_is_read_again_a_little_later(monkeypatch: pytest.MonkeyPatch):
    """A replicated stream stores a message after others have heard it."""
    monkeypatch.setattr(inlet_module, "AGAIN_MS", 20)
    listener = Listener()
    listener.inlet.push(frame(0))
    listener.stored.append(frame(0))
    listener.inlet.heal()
    await listener.settle()
    listener.stored.append(frame(1))
    await asyncio.sleep(0.06)
    await listener.settle()
    assert listener.places == [(1, 0), (1, 1)]


async def test_a_frame_that_a_stage_cannot_take_does_not_silence_the_rest():
    listener = Listener()
    listener.refuse = {1, 3}
    listener.inlet.push(frame(0))
    listener.inlet.push(frame(1))
    listener.stored += [frame(2), frame(3)]
    listener.inlet.push(frame(4))
    await listener.settle()
    assert listener.places == [(1, seq) for seq in range(5)]


async def test_a_takeover_hears_the_journal_then_what_came_meanwhile_then_goes_on():
    listener = Listener(patience_ms=1000)
    await listener.inlet.open(hold=True)
    assert listener.inlet.holding
    listener.inlet.push(frame(3))
    listener.inlet.push(frame(4))
    listener.inlet.start_after(1, 1)
    listener.stored.append(frame(2))
    listener.inlet.heal()  # a reconnect in the midst of it
    await asyncio.sleep(0.01)
    assert listener.heard == []
    listener.inlet.replay([frame(2), frame(3)])
    assert not listener.inlet.holding
    listener.inlet.push(frame(5))
    assert listener.places == [(1, 2), (1, 3), (1, 4), (1, 5)]


async def test_between_the_journal_and_what_came_meanwhile_nothing_is_missing():
    listener = Listener(patience_ms=1000)
    await listener.inlet.open(hold=True)
    listener.inlet.push(frame(5))
    listener.inlet.start_after(1, 1)
    listener.stored += [frame(seq) for seq in range(6)]
    listener.inlet.replay([frame(2)])
    await listener.settle()
    assert listener.places == [(1, seq) for seq in range(2, 6)]


async def test_the_first_owner_of_a_stage_hears_everything_from_the_beginning():
    listener = Listener(patience_ms=1000)
    await listener.inlet.open(hold=True)
    await listener.inlet.start_live()
    listener.inlet.replay([])
    listener.stored += [frame(0), frame(1)]
    listener.inlet.push(frame(2))
    await listener.settle()
    assert listener.places == [(1, 0), (1, 1), (1, 2)]


async def test_who_joins_later_hears_nothing_old():
    listener = Listener(patience_ms=1000)
    listener.stored += [frame(seq) for seq in range(7)]
    await listener.inlet.open(hold=True)
    await listener.inlet.start_live()
    listener.inlet.replay([])
    listener.inlet.push(frame(6))
    listener.inlet.push(frame(7))
    assert listener.places == [(1, 7)]


async def test_who_joins_while_somebody_speaks_misses_nothing_that_came_meanwhile():
    listener = Listener(patience_ms=1000)
    await listener.inlet.open(hold=True)
    listener.inlet.push(frame(7))
    listener.stored += [frame(seq) for seq in range(8)]
    await listener.inlet.start_live()
    listener.inlet.replay([])
    assert listener.places == [(1, 7)]


async def test_bytes_that_are_no_frame_are_passed_over():
    listener = Listener()
    await listener.inlet.open()
    for data in (b"", b"\x96\xa1\x80", b"\xc1", b"{}", encode(frame(0))):
        listener.bus.deliver(data)
    assert listener.places == [(1, 0)]


async def test_audio_is_waited_for_less_long_than_words():
    bus: Any = FakeBus()
    assert Inlet(bus, AUDIO, print)._patience_ns < Inlet(bus, TURN, print)._patience_ns


async def test_audio_is_not_read_from_its_beginning():
    listener = Listener(patience_ms=1000, paced=True)
    asked: list[int | None] = []
    read = listener.journal.read

    async def spy(subject: str, *, newest: int | None = None) -> list[AnyFrame]:
        asked.append(newest)
        return await read(subject, newest=newest)

    listener.journal.read = spy  # type: ignore[method-assign]
    listener.inlet.start_after(1, 2999)
    listener.stored += [AudioIn(seq=seq, epoch=1, pcm=b"") for seq in range(2990, 3005)]
    listener.inlet.push(listener.stored[-1])
    await listener.settle()
    assert listener.places == [(1, seq) for seq in range(3000, 3005)]
    assert asked
    assert asked[0] is not None
    assert asked[0] < 100


# -- several producers on one subject ---------------------------------------------------------------------------------


async def test_each_producer_of_control_frames_has_an_order_of_its_own():
    heard: list[AnyFrame] = []
    bus = FakeBus()
    control = ControlInlet(bus, CONTROL, heard.append)  # type: ignore[arg-type]
    await control.open()
    sent = [
        Interrupt(turn=1, seq=4, epoch=3, source="stt"),
        Played(turn=1, seq=0, epoch=1, n=1, ms=0, chunk_ms=0, interrupted=False),
        Interrupt(turn=2, seq=5, epoch=3, source="stt"),
        ConfigChanged(version=2),
        ConfigChanged(version=3),
        Played(turn=2, seq=1, epoch=1, n=1, ms=0, chunk_ms=0, interrupted=False),
        Interrupt(turn=3, seq=0, epoch=4, source="stt"),
    ]
    for one in sent:
        bus.deliver(encode(one))
        bus.deliver(encode(one)) if not isinstance(one, ConfigChanged) else None
    bus.deliver(encode(Interrupt(turn=9, seq=6, epoch=3, source="stt")))
    assert heard == sent
    await control.aclose()


# -- by force ---------------------------------------------------------------------------------------------------------


class Network(RuleBasedStateMachine):
    """Owners speak one after the other; frames are lost, doubled, late. All but the unstored are heard, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.listener = self.loop.run_until_complete(self._make())
        self.epoch, self.seq = 1, 0
        self.air: list[AnyFrame] = []
        self.said: list[tuple[int, int]] = []
        self.unstored: set[tuple[int, int]] = set()
        self.seen_epoch = 0

    async def _make(self) -> Listener:
        listener = Listener(patience_ms=3)
        listener.inlet.start_after(0, -1)
        return listener

    def teardown(self) -> None:
        self.loop.run_until_complete(self.listener.inlet.aclose())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    @initialize()
    def begin(self) -> None:
        self.speak(True, True)

    @rule(stored=st.sampled_from([True, True, True, True, False]), sent=st.booleans())
    def speak(self, stored: bool, sent: bool) -> None:
        spoken = frame(self.seq, self.epoch)
        self.said.append((self.epoch, self.seq))
        self.seq += 1
        if stored:
            self.listener.stored.append(spoken)
        else:
            self.unstored.add(self.said[-1])
        if sent:
            self.air.append(spoken)

    @precondition(lambda self: self.seq > 0)
    @rule()
    def replace_owner(self) -> None:
        """As a takeover does: what the old one said has been heard, or can be read."""
        self.settle()
        self.heal()
        self.settle()
        self.epoch, self.seq = self.epoch + 1, 0
        self.speak(True, True)

    @precondition(lambda self: self.air)
    @rule(data=st.data(), twice=st.booleans())
    def arrive(self, data: st.DataObject, twice: bool) -> None:
        """Any of those in the air, not the oldest only."""
        at = data.draw(st.integers(0, len(self.air) - 1))
        arriving = self.air[at] if twice else self.air.pop(at)

        async def push() -> None:
            self.listener.inlet.push(arriving)

        self.loop.run_until_complete(push())

    @rule(steps=st.integers(0, 6))
    def wait(self, steps: int) -> None:
        async def wait() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    @rule()
    def heal(self) -> None:
        async def heal() -> None:
            self.listener.inlet.heal()

        self.loop.run_until_complete(heal())

    @rule()
    def settle(self) -> None:
        self.loop.run_until_complete(self.listener.settle())

    @rule()
    def all_is_heard_in_the_end(self) -> None:
        self.settle()
        self.heal()
        self.settle()
        heard = self.listener.places
        missing = [place for place in self.said if place not in heard]
        assert set(missing) <= self.unstored
        assert self.listener.inlet.lost <= len(self.unstored)

    @invariant()
    def each_once_in_order(self) -> None:
        heard = self.listener.places
        assert heard == sorted(set(heard))


TestNetwork = Network.TestCase
TestNetwork.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.sets(st.integers(0, 8)))
def test_any_shuffle_with_a_whole_journal_is_heard_in_order(arrivals: list[int], refused: set[int]):
    async def run() -> None:
        listener = Listener()
        listener.inlet.start_after(0, -1)
        listener.refuse = refused
        listener.stored += [frame(seq) for seq in range(9)]
        for seq in arrivals:
            listener.inlet.push(frame(seq))
        await listener.settle()
        assert listener.places == [(1, seq) for seq in range(len(listener.places))]
        assert len(listener.places) > max(arrivals)
        await listener.inlet.aclose()

    asyncio.run(run())


# -- what the journal makes of what is stored -------------------------------------------------------------------------


class StoredBus(FakeBus):
    """Answers direct gets from a list."""

    def __init__(self, stored: list[bytes]) -> None:
        super().__init__()
        self.stored = stored

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe_with_headers(
        self, subject: str, deliver: Callable[[bytes, dict[str, str]], None]
    ) -> FakeSubscription:
        self.answer = deliver
        return FakeSubscription()

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        for number, payload in enumerate(self.stored):
            self.answer(
                payload, {"Nats-Sequence": str(number + 1), "Nats-Time-Stamp": "2026-01-01T00:00:00.123456789Z"}
            )
        self.answer(b"", {"Status": "204", "Nats-Num-Pending": "0"})


async def test_the_journal_drops_doubles_and_the_replaced_and_puts_in_order_what_was_stored_late():
    stored = [frame(0), frame(2), frame(1), frame(1), frame(0, 2), frame(3), frame(1, 2), frame(0, 2)]
    read = await Journal(StoredBus([encode(one) for one in stored])).read(TURN)  # type: ignore[arg-type]
    assert [(one.epoch, one.seq) for one in read] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


async def test_the_journal_keeps_the_producers_of_a_subject_apart():
    stored = [
        Interrupt(turn=1, seq=1, epoch=5, source="stt"),
        ConfigChanged(version=2),
        Interrupt(turn=1, seq=0, epoch=2, source="transport"),
        ConfigChanged(version=3),
        Interrupt(turn=2, seq=2, epoch=5, source="stt"),
        Interrupt(turn=2, seq=1, epoch=1, source="transport"),
    ]
    payloads = [encode(one) for one in stored]
    read = await Journal(StoredBus([*payloads[:3], b"garbage", *payloads[3:]])).read(CONTROL)  # type: ignore[arg-type]
    assert read == stored[:-1]
