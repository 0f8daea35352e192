"""`make daily-check`, with the stand-ins in Daily's place: it verifies what it says, and fails when it is not so."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from daily_rooms import DailyInThread

pytestmark = pytest.mark.integration


@pytest.fixture
def daily() -> Iterator[DailyInThread]:
    with DailyInThread() as daily:
        yield daily


def check(**env: str) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("DAILY_")} | env
    argv = [sys.executable, "-P", "-m", "meshag.commands.daily_check"]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=surroundings)


def test_all_of_it(daily: DailyInThread) -> None:
    done = check(**daily.env())
    assert done.returncode == 0, done.stderr + done.stdout
    for line in (
        "its domain is mesh-test.daily.co",
        "the agent has joined",
        "the caller hears the agent: 440 Hz",
        "the agent hears the caller: 660 Hz",
        "app messages go both ways",
        "the recording is listed",
        "the room is deleted",
        "both were put out by that",
        "verified 15 things",
    ):
        assert line in done.stdout, done.stdout
    assert not daily.vendor.rooms
    assert daily.env()["DAILY_API_KEY"] not in done.stdout + done.stderr


def test_a_step_that_fails(daily: DailyInThread) -> None:
    daily.vendor.next = [{}, {}, {}, {"status": 400}]  # the agent's token
    done = check(**daily.env())
    assert done.returncode == 1
    assert "FAILED   daily: HTTP 400" in done.stderr
    assert not daily.vendor.rooms


def test_without_a_key_it_says_what_it_needs() -> None:
    done = check()
    assert done.returncode == 2
    assert "DAILY_API_KEY" in done.stderr
    assert "DAILY_DOMAIN" in done.stderr
