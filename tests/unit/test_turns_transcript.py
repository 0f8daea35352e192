"""Transcripts: whose line comes when, and subtitles that no spoken word can break."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.clock import MS
from meshag.turns.history import Exchange
from meshag.turns.transcript import as_text, as_vtt, lines

pytestmark = pytest.mark.unit

START_NS = 1_767_225_600_000 * MS


def at(ms: int) -> int:
    return START_NS + ms * MS


WHOLE = Exchange(1, "Where is it?", "On its way.", False, at(6_000), at(1_000), at(2_500), at(3_000), at(5_500))


def test_lines_have_the_times_that_were_noted() -> None:
    caller, agent = lines([WHOLE], START_NS)
    assert (caller.speaker, caller.text, caller.start_ms, caller.end_ms) == ("caller", "Where is it?", 1_000, 2_500)
    assert (agent.speaker, agent.text, agent.start_ms, agent.end_ms) == ("agent", "On its way.", 3_000, 5_500)


def test_lines_without_times_are_placed_before_the_end_of_their_turn() -> None:
    caller, agent = lines([Exchange(1, "Where is it?", "On its way.", True, at(6_000))], START_NS)
    assert (caller.end_ms, agent.end_ms) == (6_000, 6_000)
    assert 0 < caller.start_ms < 6_000
    assert agent.start_ms == 6_000 - 11 * 60
    assert agent.interrupted
    assert not caller.interrupted


def test_what_was_typed_is_shown_for_as_long_as_it_would_take_to_say() -> None:
    (line,) = lines([Exchange(1, "Where is it, please?", "", False, at(6_000), at(1_000), at(1_000))], START_NS)
    assert (line.start_ms, line.end_ms) == (1_000, 1_000 + 20 * 60)


def test_a_silent_half_of_a_turn_has_no_line() -> None:
    found = lines([Exchange(1, "", "Welcome."), Exchange(2, "Hello?", " ")], 0)
    assert [(line.turn, line.speaker) for line in sorted(found, key=lambda line: line.turn)] == [
        (1, "agent"),
        (2, "caller"),
    ]


def test_lines_are_in_the_order_in_which_they_began() -> None:
    late = Exchange(1, "One.", "Two.", False, at(9_000), at(1_000), at(2_000), at(7_000), at(9_000))
    between = Exchange(2, "Three.", "", False, at(5_000), at(3_000), at(4_000))
    assert [line.text for line in lines([late, between], START_NS)] == ["One.", "Three.", "Two."]


def test_a_session_that_was_put_back_may_be_younger_than_what_was_said() -> None:
    found = lines([WHOLE], at(4_000))
    assert [(line.start_ms, line.end_ms) for line in found] == [(0, 1), (0, 1_500)]


def test_text_and_subtitles() -> None:
    long = Exchange(2, "And\nnow?", "A < b && c --> d", True, at(0), at(3_661_001), at(3_662_000), at(3_663_000), at(0))
    said = lines([WHOLE, long], START_NS)
    assert as_text(said).splitlines() == [
        "[00:00:01] Caller: Where is it?",
        "[00:00:03] Agent: On its way.",
        "[01:01:01] Caller: And now?",
        "[01:01:03] Agent: A < b && c --> d [interrupted]",
    ]
    assert as_vtt(said).split("\n\n") == [
        "WEBVTT",
        "1\n00:00:01.000 --> 00:00:02.500\n<v Caller>Where is it?",
        "2\n00:00:03.000 --> 00:00:05.500\n<v Agent>On its way.",
        "3\n01:01:01.001 --> 01:01:02.000\n<v Caller>And now?",
        "4\n01:01:03.000 --> 01:01:03.001\n<v Agent>A &lt; b &amp;&amp; c --&gt; d\n",
    ]
    assert as_vtt([]) == "WEBVTT\n"
    assert as_text([]) == ""


@given(st.lists(st.tuples(st.text(), st.text(), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5))
def test_no_text_breaks_the_subtitles(said: list[tuple[str, str, int, int]]) -> None:
    exchanges = [
        Exchange(turn, user, reply, False, at(end), at(start), 0, at(start), at(end))
        for turn, (user, reply, start, end) in enumerate(said, 1)
    ]
    found = lines(exchanges, START_NS)
    head, *cues = as_vtt(found).removesuffix("\n").split("\n\n")
    assert head == "WEBVTT"
    assert len(cues) == len(found)
    for number, cue in enumerate(cues, 1):
        name, times, text = cue.split("\n")
        assert name == str(number)
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}", times)
        start, end = times.split(" --> ")
        assert start < end
        assert re.fullmatch(r"<v (Caller|Agent)>[^<>]*", text)
