"""How a command ends when a signal comes: SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is gone).

    end_at_once   nothing is there to be undone: while modules are imported, while a service loads its models
    unwind        an exception undoes what was begun: files, a download
    stopping      noted, and seen where the command waits: a mesh, a call

One of them that is ignored from the start stays so: that is what `nohup`, and a shell for what a script runs with `&`,
ask for.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from meshag import clock

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOP_BOUND_S = 20.0
"""A command that tidies up after a signal has ended after so long, whatever hangs; what it started is killed then."""

AGAIN_S = 0.2
"""Signals closer together are one: shells and supervisors send them in pairs, people do not press that fast."""


def end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """End as things stand, with the status 128 + number.

    Not by an exception: thrown into an import, it is wrapped, swallowed or shown.
    """
    if number == signal.SIGINT:
        _write("\n")  # the prompt stands below ^C
    os._exit(128 + number)


def unwind(number: int, frame: FrameType | None = None) -> NoReturn:
    """Raise what ends the command and undoes on its way what was begun."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def unwinds(error: BaseException) -> bool:
    """Whether `error` is only what became of `unwind` on its way."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt | SystemExit):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object], *more: signal.Signals) -> Iterator[None]:
    """Within, `handler` takes the signals that end a command, and `more`."""
    former = {}
    try:
        for number in (*ENDING, *more):
            if signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)


class stopping:  # noqa: N801 - reads as a statement
    """`with stopping() as signals`: the first signal is noted, `signals.pause` raises; the second ends at once.

    Nothing is thrown into running code: an interrupt between two lines would lose the process that was just started.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        """Which signal came first."""
        self.on_signal: Callable[[], object] | None = None
        """Called by the first one: what waits in an event loop is not woken by `pause`."""
        self.kill: Callable[[], object] = lambda: None
        """Called when there is no time left to tidy up. Must not wait."""
        self._came_s = 0.0

    def __enter__(self) -> "stopping":
        self._handled = handled(self._on_signal, signal.SIGALRM)
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._handled.__exit__(None, None, None)

    def pause(self, seconds: float) -> None:
        """Sleep, at most a fraction of a second. Raises KeyboardInterrupt when a signal has come."""
        if self.came is None:
            clock.sleep_s(seconds)
        if self.came is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came is None and number != signal.SIGALRM:
            self.came, self._came_s = number, clock.monotonic_s()
            signal.setitimer(signal.ITIMER_REAL, STOP_BOUND_S)
            if number != signal.SIGHUP:  # the terminal is gone then
                _write("\nStopping …\n")
            if self.on_signal is not None:
                self.on_signal()
        elif self.came is not None and (number == signal.SIGALRM or clock.monotonic_s() - self._came_s > AGAIN_S):
            self.kill()
            end_at_once(self.came)


def _write(text: str) -> None:
    """To stderr, past its buffer, which the interrupted code may be writing."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
