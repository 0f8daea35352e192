"""What happens to all sessions, as one transport worker hears it, and those who watch it there.

One subscription, however many watch. A watcher who asks for what was before reads it from the stream, and joins those
who hear it live at the moment at which both have come to the same number.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from meshag import subjects
from meshag.bus.connection import Bus
from meshag.bus.follower import Follower
from meshag.bus.jetstream import Bounds, bounds
from meshag.bus.journal import Journal
from meshag.ids import SessionId
from meshag.sessions.events import Event, decode, message

WAITING = 1_000
"""Events that may wait for a watcher; one more, and it is too slow."""

BATCH = 200
"""Events read from the stream at once."""

LAG_S = 0.05
"""The copy of the stream that was read may be this far behind the one that was heard."""


class Watcher:
    """One who watches: what it wants, and what waits for it."""

    def __init__(self, key: str, wake: Callable[[], None], overrun: Callable[[], None]) -> None:
        """`key`: the API key whose sessions alone it may see; empty: everybody's.

        `wake`: called when something waits. `overrun`: called when more waits than may.
        """
        self.key = key
        self.types: frozenset[str] = frozenset()
        """Empty: all."""
        self.sessions: frozenset[SessionId] = frozenset()
        """Empty: all."""
        self.position = 0
        """Every event up to this number has been put before it, or was not for it."""
        self.waiting: deque[str] = deque()
        self._wake = wake
        self._overrun = overrun

    def wants(self, event: Event) -> bool:
        """Whether an event is for it."""
        return (
            (not self.key or event.key == self.key)
            and (not self.types or event.type in self.types)
            and (not self.sessions or event.session in self.sessions)
        )

    def offer(self, sequence: int, event: Event | None, text: str) -> None:
        """Put an event before it. One that it has had already is not put again."""
        if sequence <= self.position:
            return
        self.position = sequence
        if event is not None and self.wants(event):
            self.put(text)

    def put(self, text: str) -> None:
        """Let a message wait for it."""
        if len(self.waiting) >= WAITING:
            self._overrun()
            return
        self.waiting.append(text)
        self._wake()


class Feed:
    """Make it, `start()` it, and later `aclose()` it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._journal = Journal(bus)
        self._follower = Follower(bus, subjects.EVENTS, self._take, self._lost)
        self._watchers: set[Watcher] = set()
        self.open: set[Callable[[str], None]] = set()
        """What closes each connection, with the reason."""

    @property
    def last(self) -> int:
        """The number of the newest event heard."""
        return self._follower.last

    async def start(self) -> None:
        """Begin to hear. Raises BusError."""
        await self._follower.start()

    async def aclose(self) -> None:
        """Close every connection, and hear nothing more."""
        for close in tuple(self.open):
            close("the service restarts: come again with ?after=")
        await self._follower.aclose()

    async def bounds(self) -> Bounds:
        """Which events are kept. Raises BusError."""
        return await bounds(self._bus, subjects.EVENTS)

    def leave(self, watcher: Watcher) -> None:
        """It hears nothing more. Idempotent."""
        self._watchers.discard(watcher)

    async def join(self, watcher: Watcher, lost: Callable[[int], None], taken: Callable[[], Awaitable[None]]) -> None:
        """Put before it everything after its position, then what comes, in order, each once. Raises BusError.

        `lost`: called with the first number that is kept when events after its position are not. `taken`: waits until
        it has taken what waits, so that reading runs no faster than it does.
        """
        there = await self.bounds()
        if watcher.position > max(there.last, self.last):  # numbers of another stream, which is gone
            lost(there.first)
            watcher.position = there.first - 1
        while watcher.position < self.last:
            found = await self._journal.after(subjects.EVENTS_ALL, watcher.position, BATCH)
            first = found[0][0] if found else (await self.bounds()).first
            if first > watcher.position + 1:
                lost(first)
                watcher.position = first - 1
            elif not found:
                await asyncio.sleep(LAG_S)
            for sequence, data in found:
                event = decode(data)
                wanted = event is not None and watcher.wants(event)
                watcher.offer(sequence, event, _text(sequence, event) if wanted else "")
            await taken()
        self._watchers.add(watcher)  # not a step between the comparison and this line

    def _take(self, sequence: int, data: bytes) -> None:
        event = decode(data)
        wanting = [watcher for watcher in self._watchers if event is not None and watcher.wants(event)]
        text = _text(sequence, event) if wanting else ""
        for watcher in tuple(self._watchers):
            watcher.offer(sequence, event, text)

    def _lost(self) -> None:
        """Cut off for longer than events are kept: everybody comes again, and is told what is no longer there."""
        for close in tuple(self.open):
            close("events were lost: come again with ?after=")


def _text(sequence: int, event: Event | None) -> str:
    return msgspec.json.encode(message(sequence, event)).decode() if event is not None else ""
