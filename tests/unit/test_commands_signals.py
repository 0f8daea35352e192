"""What a signal does to a command: noted, seen where it waits, pressed by a second one, bounded in time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshag.commands.signals import STOP_BOUND_S, handled, stopping, unwind, unwinds

pytestmark = pytest.mark.unit

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_nothing_but_a_pause(number: signal.Signals) -> None:
    told = []
    with stopping() as signals:
        signals.pause(0)
        signals.on_signal = lambda: told.append(signals.came)
        os.kill(os.getpid(), number)
        assert signals.came == number
        with pytest.raises(KeyboardInterrupt):
            signals.pause(60)
        os.kill(os.getpid(), number)  # so soon, it is the same
    assert told == [number]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_ignored_stays_so_and_the_rest_is_put_back() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    try:
        with stopping() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.pause(0)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


def test_an_exception_that_an_import_made_of_a_signal_is_recognised() -> None:
    def make() -> BaseException:
        try:
            try:
                with handled(unwind):
                    os.kill(os.getpid(), signal.SIGTERM)
            except SystemExit as error:
                raise RuntimeError("Error calling __set_name__") from error
        except RuntimeError as error:
            return error
        raise AssertionError

    assert unwinds(make())
    assert not unwinds(ValueError())


_DEAF = """
import os, signal, sys, time
from meshag.commands import signals
signals.STOP_BOUND_S = float(sys.argv[1])
with signals.stopping() as stopping:
    stopping.kill = lambda: os.write(1, b"killed")
    print(flush=True)
    while True:
        time.sleep(1)
"""


class Deaf:
    """Never looks whether a signal has come."""

    def __init__(self, bound_s: float) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", _DEAF, str(bound_s)], stdout=pipe, stderr=pipe)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self) -> tuple[int, bytes, bytes]:
        said, complained = self.process.communicate(timeout=20)
        return self.process.returncode, said, complained


def test_a_command_that_hangs_ends_at_the_bound() -> None:
    deaf = Deaf(0.3)
    deaf.process.terminate()
    assert deaf.end() == (143, b"killed", "\nStopping …\n".encode())


def test_a_second_signal_ends_at_once() -> None:
    deaf = Deaf(600)
    deaf.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        deaf.process.wait(0.5)
    deaf.process.send_signal(signal.SIGINT)
    assert deaf.end() == (130, b"killed", "\nStopping …\n\n".encode())


def test_the_readme_says_the_bound() -> None:
    assert f"after {STOP_BOUND_S:.0f} s at the latest" in " ".join(README.read_text().split())
