"""A follower hears every message once and in order, whatever becomes of its consumer and its stream."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshag import subjects
from meshag.bus import follower as followers
from meshag.bus.connection import Bus
from meshag.bus.follower import Follower
from meshag.bus.jetstream import ask, bounds, place_of
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import BusError
from meshag.ids import new_session_id
from standins import eventually

pytestmark = pytest.mark.integration

SUBJECT = subjects.event(new_session_id())


@pytest.fixture
async def bus(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    monkeypatch.setattr(followers, "HEARTBEAT_S", 0.2)
    bus = await Bus.connect(servers.nats_url, name="test")
    yield bus
    await bus.close()


class Heard:
    """A follower's, with what it has heard."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.words: list[bytes] = []
        self.numbers: list[int] = []
        self.lost = 0
        self.follower = Follower(bus, subjects.EVENTS, self._take, self._lose)

    def _take(self, sequence: int, data: bytes) -> None:
        self.numbers.append(sequence)
        self.words.append(data)

    def _lose(self) -> None:
        self.lost += 1

    async def say(self, *words: bytes) -> None:
        for word in words:
            await self.bus._client.jetstream().publish(SUBJECT, word)


@pytest.fixture
async def heard(bus: Bus) -> AsyncIterator[Heard]:
    heard = Heard(bus)
    await heard.follower.start()
    yield heard
    await heard.follower.aclose()


async def test_it_hears_what_comes_after_its_start(heard: Heard) -> None:
    await heard.say(b"a", b"b")
    await eventually("both are heard", lambda: heard.words == [b"a", b"b"])
    assert heard.numbers == [heard.follower.last - 1, heard.follower.last]
    late = Heard(heard.bus)
    await late.follower.start()
    await heard.say(b"c")
    await eventually("the late one hears it too", lambda: late.words == [b"c"])
    await late.follower.aclose()


async def test_a_consumer_that_is_gone_is_made_again_and_nothing_is_missed(heard: Heard) -> None:
    await heard.say(b"a")
    await eventually("it is heard", lambda: heard.words == [b"a"])
    await ask(heard.bus, f"CONSUMER.DELETE.{subjects.EVENTS}.{heard.follower._consumer}")
    await heard.say(b"b", b"c")
    await eventually("the rest is heard", lambda: heard.words == [b"a", b"b", b"c"])
    assert heard.lost == 0


async def test_a_message_that_does_not_arrive_is_fetched(heard: Heard) -> None:
    take, dropped = heard.follower._take, []

    def lossy(consumer: str, message: object) -> None:
        if getattr(message, "data", b"") == b"b" and not dropped:
            dropped.append(message)
        else:
            take(consumer, message)  # type: ignore[arg-type]

    heard.follower._take = lossy  # type: ignore[method-assign]
    await heard.say(b"a", b"b", b"c")
    await eventually("all are heard", lambda: heard.words == [b"a", b"b", b"c"])
    assert dropped


async def test_it_says_when_messages_are_gone_that_it_had_yet_to_hear(heard: Heard) -> None:
    await heard.say(b"a", b"b", b"c")
    await eventually("they are heard", lambda: len(heard.words) == 3)
    heard.follower.last -= 2  # as one who was cut off
    await heard.bus._client.jetstream().purge_stream(subjects.EVENTS)
    heard.follower._broken.set()
    await eventually("it says so", lambda: heard.lost == 1)
    await heard.say(b"d")
    await eventually("it goes on", lambda: heard.words[-1] == b"d")
    heard.follower.last += 1_000  # as one who knew the stream before it was made anew
    heard.follower._broken.set()
    await eventually("it says so", lambda: heard.lost == 2)
    await heard.say(b"e")
    await eventually("it goes on", lambda: heard.words[-1] == b"e")


async def test_what_jetstream_refuses_is_an_error(bus: Bus) -> None:
    with pytest.raises(BusError, match="stream not found"):
        await bounds(bus, "NOTHING")


def test_a_place_is_read_from_either_form_of_a_reply() -> None:
    assert place_of("$JS.ACK.EVENTS.c.1.204.7.1700000000.0") == (204, 7)
    assert place_of("$JS.ACK.hub.account.EVENTS.c.1.204.7.1700000000.0.random") == (204, 7)
    assert place_of("_INBOX.x") is None


async def test_two_followers_hear_the_same(heard: Heard) -> None:
    other = Heard(heard.bus)
    await other.follower.start()
    await asyncio.gather(*(heard.say(b"%d" % number) for number in range(50)))
    await eventually("both hear all", lambda: len(heard.words) == len(other.words) == 50)
    assert (heard.numbers, heard.words) == (other.numbers, other.words)
    await other.follower.aclose()
