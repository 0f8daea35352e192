"""The seam between what was and what comes: whoever joins misses nothing and hears nothing twice."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from meshag.api import feed as feeds
from meshag.api.feed import Feed, Watcher
from meshag.bus.jetstream import Bounds
from meshag.ids import SessionId
from meshag.sessions.events import Event, decode

pytestmark = pytest.mark.unit

SESSION = SessionId("abcdefghijklmnopqrstuvwxyz")


def data(number: int) -> bytes:
    return msgspec.msgpack.encode(Event(type="error", session=SESSION, at_ns=number))


class Stream:
    """Holds events `first` to `last`; a copy of it is `behind`. The feed has heard up to `heard`."""

    def __init__(self, first: int, last: int, *, heard: int | None = None, behind: int = 0) -> None:
        self.first, self.last, self.behind = first, last, behind
        self.feed = Feed(cast("Any", SimpleNamespace(on_reconnect=lambda call: lambda: None)))
        self.feed._follower.last = last if heard is None else heard
        self.feed._journal = cast("Any", self)
        self.feed.bounds = self.bounds  # type: ignore[method-assign]
        self.between: list[int] = []
        """Heard while the next one is read."""
        self.watcher = Watcher("", lambda: None, self.overrun)
        self.lost: list[int] = []
        self.overruns = 0

    def overrun(self) -> None:
        self.overruns += 1

    async def bounds(self) -> Bounds:
        return Bounds(self.first, self.last)

    async def after(self, subject: str, sequence: int, most: int) -> list[tuple[int, bytes]]:
        end = min(max(self.first, sequence + 1) + most, self.last - self.behind + 1)
        self.behind = 0
        found = [(number, data(number)) for number in range(max(self.first, sequence + 1), end)]
        await asyncio.sleep(0)
        for number in self.between:
            self.hear(number)
        self.between.clear()
        return found

    def hear(self, number: int) -> None:
        self.last = max(self.last, number)
        self.feed._follower.last = number
        self.feed._take(number, data(number))

    async def join(self, after: int) -> None:
        self.watcher.position = after

        async def taken() -> None:
            self.taken += [msgspec.json.decode(text)["id"] for text in self.watcher.waiting]
            self.watcher.waiting.clear()

        self.taken: list[int] = []
        async with asyncio.timeout(5):
            await self.feed.join(self.watcher, self.lost.append, taken)

    def heard(self) -> list[int]:
        return self.taken + [msgspec.json.decode(text)["id"] for text in self.watcher.waiting]


def sure(stream: Stream, first: int, last: int) -> None:
    assert stream.heard() == list(range(first, last + 1))
    assert stream.overruns == 0


async def test_what_was_is_read_and_what_comes_is_heard() -> None:
    stream = Stream(1, 1_000)
    await stream.join(3)
    stream.hear(1_001)
    sure(stream, 4, 1_001)
    assert stream.lost == []


async def test_what_is_heard_while_it_reads_is_read_too() -> None:
    stream = Stream(1, 10)
    stream.between = [11, 12]
    await stream.join(0)
    stream.hear(13)
    sure(stream, 1, 13)


async def test_what_was_read_before_it_was_heard_is_not_put_again() -> None:
    stream = Stream(1, 10, heard=8)
    await stream.join(0)
    for number in (9, 10, 11):
        stream.hear(number)
    sure(stream, 1, 11)


async def test_a_copy_that_lags_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "LAG_S", 0)
    stream = Stream(1, 10, behind=4)
    await stream.join(6)
    sure(stream, 7, 10)
    assert stream.lost == []


@pytest.mark.parametrize(("first", "last", "after"), [(50, 60, 3), (61, 60, 3), (5, 9, 700)])
async def test_what_is_no_longer_kept_is_said_once(first: int, last: int, after: int) -> None:
    """Older than what is kept; nothing is kept; numbers of a stream that is gone."""
    stream = Stream(first, last)
    await stream.join(after)
    stream.hear(last + 1)
    assert stream.lost == [first]
    sure(stream, first, last + 1)


async def test_too_much_waiting_is_an_overrun_and_what_is_not_wanted_does_not_wait() -> None:
    stream = Stream(1, 0)
    await stream.join(0)
    stream.watcher.types = frozenset({"reply"})
    for number in range(1, feeds.WAITING + 10):
        stream.hear(number)
    assert not stream.watcher.waiting
    assert stream.watcher.position == feeds.WAITING + 9
    stream.watcher.types = frozenset()
    for number in range(feeds.WAITING + 10, 2 * feeds.WAITING + 11):
        stream.hear(number)
    assert stream.overruns == 1


def test_an_event_of_a_newer_version_is_passed_over() -> None:
    assert decode(data(1)) is not None
    newer = msgspec.msgpack.encode({"type": "teleported", "session": SESSION, "at_ns": 1})
    assert decode(newer) is decode(b"\xc1") is None
