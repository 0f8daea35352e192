"""What a person sees of a download."""

import io

import pytest

from meshag import clock
from meshag.models.progress import Meter, megabytes

pytestmark = pytest.mark.unit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: seconds[0])
    return seconds


def test_off_a_terminal_a_line_every_two_seconds_and_the_last(now: list[float]) -> None:
    out = io.StringIO()
    meter = Meter(out)
    for done in range(101):
        meter.bytes("toy", done * 1_000_000, 100_000_000)
        now[0] += 0.1
    meter.bytes("toy", 100_000_000, 100_000_000)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["toy", "21.0", "MB", "of", "100", "MB", "21%"]
    assert lines[-1].endswith("100%")


def test_on_a_terminal_one_line_is_redrawn(now: list[float]) -> None:
    out = Terminal()
    meter = Meter(out)
    for done in (0, 50, 100):
        meter.bytes("toy", done * 1_000_000, 100_000_000)
        now[0] += 1
    meter.note("toy: unpacking")
    bar, note, end = out.getvalue().split("\n")
    assert (bar.count("\r"), note, end) == (3, "toy: unpacking", "")
    assert "[############............] toy  50.0 MB of 100 MB   50%" in bar


def test_a_note_leaves_an_unfinished_bar_alone(now: list[float]) -> None:
    out = Terminal()
    meter = Meter(out)
    meter.bytes("toy", 1, 100)
    meter.note("stopped")
    assert out.getvalue().endswith("\nstopped\n")


@pytest.mark.parametrize(("size_bytes", "text"), [(2_327_524, "2.3 MB"), (491_400_064, "491 MB"), (0, "0.0 MB")])
def test_megabytes(size_bytes: int, text: str) -> None:
    assert megabytes(size_bytes) == text
