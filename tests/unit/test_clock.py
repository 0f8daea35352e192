"""Two clocks and their units."""

import time

import pytest

from meshag import clock

pytestmark = pytest.mark.unit


def test_the_units_are_as_named():
    assert abs(clock.wall_ns() / 1e9 - clock.wall_s()) < 1
    assert abs(clock.wall_s() - time.time()) < 1
    assert abs(clock.monotonic_ns() / 1e9 - clock.monotonic_s()) < 1
    assert clock.MS * 1000 == 1_000_000_000


def test_the_clock_for_durations_does_not_go_back():
    readings = [clock.monotonic_ns() for _ in range(1000)]
    assert readings == sorted(readings)


def test_cpu_time_counts_work():
    before = clock.cpu_s()
    while clock.cpu_s() <= before:
        sum(range(1000))
    clock.sleep_s(0.001)
