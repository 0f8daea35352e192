"""What an owner says: numbered, stamped, held back in doubt, said again in order after a reconnect."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshag import clock
from meshag.bus import acknowledged as acknowledged_module
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.outlet import KEEP, Outlet
from meshag.errors import BusError
from meshag.frames import AudioIn, Interrupt, TextIn, decode

pytestmark = pytest.mark.unit


class Answer:
    """What JetStream says to a publish."""

    def __init__(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.subject, self.data, self.headers = subject, data, headers


class FakeBus:
    """Takes what is published while it is connected; loses it while `losing`."""

    def __init__(self) -> None:
        self.settled = self.connected = True
        self.losing = False
        self.broken = False
        self.sent: list[tuple[str, bytes, str, str]] = []
        self.lost_at_ns: int | None = None
        self.on_back: list[Callable[[], None]] = []
        self.refusal: str | None = None
        self.acknowledge: Callable[[Answer], None]
        self.redeclared = 0

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise BusError("full")
        if not self.losing:
            self.sent.append((subject, data, reply, (headers or {}).get("Nats-Msg-Id", "")))

    async def _subscribe(self, subject: str, deliver: Callable[[Answer], None]) -> "FakeBus":
        self.acknowledge = deliver
        return self

    async def close(self) -> None:
        pass

    def new_inbox(self) -> str:
        return "_INBOX.me"

    async def redeclare(self) -> None:
        self.redeclared += 1

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.on_back.append(callback)
        return lambda: self.on_back.remove(callback)

    def go_down(self) -> None:
        self.settled, self.lost_at_ns = False, clock.monotonic_ns()

    def come_back(self) -> None:
        self.settled, self.losing = True, False
        for callback in tuple(self.on_back):
            callback()

    @property
    def seqs(self) -> list[int]:
        return [decode(data).seq for _, data, _, _ in self.sent]

    def ack(self, at: int, error: str = "") -> None:
        _, _, reply, _ = self.sent[at]
        self.acknowledge(Answer(reply, (error or '{"stream":"X","seq":1}').encode()))


class Doubt:
    """A guard."""

    def __init__(self) -> None:
        self.is_sure = True

    def sure(self) -> bool:
        return self.is_sure


def media(bus: FakeBus, guard: Doubt | None = None) -> Outlet:
    return Outlet(bus, "audio.input.x", 3, guard or Doubt(), None)  # type: ignore[arg-type]


def audio() -> AudioIn:
    return AudioIn(pcm=b"")


async def test_frames_are_numbered_and_stamped():
    bus = FakeBus()
    outlet = media(bus)
    before = clock.wall_ns()
    sent = [await outlet.send(audio()) for _ in range(3)]
    assert [decode(data) for _, data, _, _ in bus.sent] == sent
    assert [(one.epoch, one.seq) for one in sent] == [(3, 0), (3, 1), (3, 2)]
    assert all(before <= one.at_ns <= clock.wall_ns() for one in sent)


async def test_the_time_of_what_happened_is_kept():
    assert (await media(FakeBus()).send(AudioIn(pcm=b"", at_ns=7))).at_ns == 7


async def test_in_doubt_nothing_is_said_and_in_certainty_all_of_it_in_order():
    bus, guard = FakeBus(), Doubt()
    outlet = media(bus, guard)
    await outlet.send(audio())
    guard.is_sure = False
    await outlet.send(audio())
    guard.is_sure = True  # the leases are not checked yet
    await outlet.send(audio())
    assert bus.seqs == [0]
    await asyncio.gather(outlet.release(), outlet.send(audio()))
    await outlet.send(audio())
    assert bus.seqs == [0, 1, 2, 3, 4]


async def test_a_replaced_owner_says_nothing_more_not_even_what_it_held():
    bus, guard = FakeBus(), Doubt()
    outlet = media(bus, guard)
    guard.is_sure = False
    await outlet.send(audio())
    outlet.close()
    guard.is_sure = True
    await outlet.release()
    await outlet.send(audio())
    bus.come_back()
    await asyncio.sleep(0.01)
    assert bus.sent == []
    assert bus.on_back == []


async def test_after_a_reconnect_audio_is_said_again_in_order_and_new_audio_waits_for_it():
    bus = FakeBus()
    outlet = media(bus)
    await outlet.send(audio())
    bus.losing = True  # the connection is dead, and nobody knows
    await outlet.send(audio())
    bus.go_down()
    await outlet.send(audio())
    bus.come_back()
    await outlet.send(audio())
    await asyncio.sleep(0.01)
    await outlet.send(audio())
    assert bus.seqs == [0, 0, 1, 2, 3, 4]


async def test_audio_is_not_kept_for_ever():
    bus = FakeBus()
    outlet = media(bus)
    bus.go_down()
    for _ in range(KEEP + 10):
        await outlet.send(audio())
    bus.come_back()
    await asyncio.sleep(0.05)
    assert bus.seqs == list(range(10, KEEP + 10))


async def test_audio_of_long_ago_is_not_said_again(monkeypatch: pytest.MonkeyPatch):
    bus = FakeBus()
    outlet = media(bus)
    await outlet.send(audio())
    now = clock.monotonic_ns()
    monkeypatch.setattr(clock, "monotonic_ns", lambda: now + 10_000 * clock.MS)
    await outlet.send(audio())
    bus.go_down()
    bus.come_back()
    await asyncio.sleep(0.01)
    assert bus.seqs == [0, 1, 1]


async def test_a_bus_that_takes_nothing_does_not_stop_the_owner():
    bus = FakeBus()
    outlet = media(bus)
    bus.broken = True
    await outlet.send(audio())
    bus.go_down()
    bus.come_back()
    await asyncio.sleep(0.01)
    bus.broken = False
    bus.go_down()
    bus.come_back()
    await asyncio.sleep(0.01)
    assert bus.seqs == [0]


# -- the turn class ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def bus(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(acknowledged_module, "RESEND_MS", 40)
    return FakeBus()


@pytest.fixture
async def turns(bus: FakeBus) -> Any:
    acknowledged = Acknowledged(bus)  # type: ignore[arg-type]
    await acknowledged.start()
    yield acknowledged
    acknowledged._waiting.clear()
    await acknowledged.aclose()
    assert bus.on_back == []


def turn_outlet(bus: FakeBus, turns: Acknowledged) -> Outlet:
    return Outlet(bus, "text.input.x", 3, Doubt(), turns)  # type: ignore[arg-type]


async def test_a_message_id_names_subject_epoch_number_and_producer(bus: FakeBus, turns: Acknowledged):
    outlet = turn_outlet(bus, turns)
    await outlet.send(TextIn(text="so"))
    await outlet.send(Interrupt(turn=1, source="stt"))
    assert [message_id for _, _, _, message_id in bus.sent] == ["text.input.x/3/0", "text.input.x/3/1/stt"]


async def test_an_acknowledged_message_is_not_sent_again(bus: FakeBus, turns: Acknowledged):
    await turn_outlet(bus, turns).send(TextIn(text="so"))
    bus.ack(0)
    await asyncio.sleep(0.15)
    assert len(bus.sent) == 1
    assert turns.waiting == 0


async def test_one_that_is_not_is_sent_again_with_the_same_id(bus: FakeBus, turns: Acknowledged):
    await turn_outlet(bus, turns).send(TextIn(text="so"))
    await asyncio.sleep(0.25)
    assert len(bus.sent) >= 2
    assert len({(data, message_id) for _, data, _, message_id in bus.sent}) == 1


async def test_after_a_reconnect_what_was_lost_goes_before_what_is_new(bus: FakeBus, turns: Acknowledged):
    outlet = turn_outlet(bus, turns)
    await outlet.send(TextIn(text="a"))
    bus.ack(0)
    bus.losing = True
    await outlet.send(TextIn(text="b"))
    bus.go_down()
    await outlet.send(TextIn(text="c"))
    bus.come_back()
    await outlet.send(TextIn(text="d"))
    await asyncio.sleep(0.02)
    await outlet.send(TextIn(text="e"))
    assert list(dict.fromkeys(bus.seqs)) == [0, 1, 2, 3, 4]


async def test_where_no_stream_is_it_is_made_and_the_message_sent_again(bus: FakeBus, turns: Acknowledged):
    await turn_outlet(bus, turns).send(TextIn(text="so"))
    bus.acknowledge(Answer(bus.sent[0][2], b"", {"Status": "503"}))
    assert bus.refusal
    await asyncio.sleep(0.1)
    assert bus.redeclared
    assert len(bus.sent) >= 2
    bus.ack(1)
    assert bus.refusal is None
    assert turns.waiting == 0


async def test_a_refusal_is_told_and_the_message_kept(bus: FakeBus, turns: Acknowledged):
    await turn_outlet(bus, turns).send(TextIn(text="so"))
    bus.ack(0, '{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}')
    assert bus.refusal == "insufficient resources (10023)"
    assert turns.waiting == 1
    bus.acknowledge(Answer(bus.sent[0][2], b"garbage"))
    bus.acknowledge(Answer("_INBOX.me.77", b"{}"))
    assert turns.waiting == 1


async def test_a_message_older_than_the_duplicate_window_is_given_up(
    bus: FakeBus, turns: Acknowledged, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(acknowledged_module, "GIVE_UP_MS", 60)
    await turn_outlet(bus, turns).send(TextIn(text="so"))
    await asyncio.sleep(0.3)
    assert (turns.waiting, turns.lost) == (0, 1)


async def test_a_full_bus_delays_a_message_and_keeps_the_order(bus: FakeBus, turns: Acknowledged):
    outlet = turn_outlet(bus, turns)
    bus.broken = True
    await outlet.send(TextIn(text="a"))
    bus.broken = False
    await outlet.send(TextIn(text="b"))
    await asyncio.sleep(0.3)
    assert list(dict.fromkeys(bus.seqs)) == [0, 1]
