"""Time that passes only when there is nothing left to do: what waits for a second is done at once, in the same order.

Nothing outside is awaited in it: no socket, no thread. So the same input gives the same run, on any machine.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from meshag import clock

T = TypeVar("T")

NS = 1_000_000_000


class Stuck(RuntimeError):  # noqa: N818 - reads as what happened
    """Everything waits, and nothing will ever come."""


class _Selector(selectors.BaseSelector):
    """Stands in for the wait for sockets: the time that would have been waited has passed."""

    def __init__(self) -> None:
        self.passed_ns = 0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, getattr(fileobj, "fileno", int)(), events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        if timeout > 0:
            self.passed_ns += max(1, round(timeout * NS))
        return []

    def get_map(self) -> Any:
        return self._keys

    def close(self) -> None:
        self._keys.clear()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self, now_ns: int = 0) -> None:
        """`now_ns`: Unix time at its beginning."""
        self._virtual = _Selector()
        self._began_ns = now_ns
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Seconds since it began."""
        return self._virtual.passed_ns / NS

    @property
    def now_ns(self) -> int:
        """The Unix time that it is here."""
        return self._began_ns + self._virtual.passed_ns

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Here and now: a thread would need time of its own."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


async def until(at_ns: int) -> None:
    """Wait for a Unix time; not at all for one that has passed."""
    while (left_ns := at_ns - clock.wall_ns()) > 0:  # noqa: ASYNC110 - a second round only after a rounding
        await asyncio.sleep(left_ns / NS)


@contextmanager
def _clock_of(loop: VirtualLoop) -> Iterator[None]:
    readings: dict[str, Callable[[], int | float]] = {
        "wall_ns": lambda: loop.now_ns,
        "wall_s": lambda: loop.now_ns / NS,
        "monotonic_ns": lambda: loop.now_ns,
        "monotonic_s": lambda: loop.now_ns / NS,
    }
    former = {name: getattr(clock, name) for name in readings}
    try:
        for name, reading in readings.items():
            setattr(clock, name, reading)
        yield
    finally:
        for name, reading in former.items():
            setattr(clock, name, reading)


def run(work: Coroutine[Any, Any, T], *, now_ns: int) -> T:
    """Run `work` to its end in virtual time, beginning at a Unix time. `meshag.clock` tells it meanwhile, to everybody.

    Raises Stuck when nothing could ever happen again. Not for a thread beside others that read the clock.
    """
    loop = VirtualLoop(now_ns)
    with _clock_of(loop):
        try:
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(work)
        finally:
            _end(loop)


def _end(loop: VirtualLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    try:
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
