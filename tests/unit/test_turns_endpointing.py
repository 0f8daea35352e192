"""Turn-taking: every event at its exact moment, whatever pieces the audio comes in."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag.turns.endpointing import (
    MAX_UTTERANCE_MS,
    BargeIn,
    Endpointer,
    FalseStart,
    TurnEnd,
    TurnEvent,
    TurnSettings,
    VoicePause,
    VoiceResume,
    VoiceStart,
)

pytestmark = pytest.mark.unit

Heard = tuple[float, int, bool]
VOICE, SILENCE = 0.9, 0.05


def play(*heard: tuple[float, int] | Heard, settings: TurnSettings | None = None) -> list[TurnEvent]:
    """The events that follow from (probability, ms) with an idle agent, or (probability, ms, agent_busy)."""
    endpointer = Endpointer(settings or TurnSettings())
    events: list[TurnEvent] = []
    for item in heard:
        probability, ms, busy = item if len(item) == 3 else (*item, False)
        events += endpointer.push(probability, ms, busy)
    return events


def test_a_turn() -> None:
    assert play((SILENCE, 500), (VOICE, 1000), (SILENCE, 2000)) == [
        VoiceStart(500),
        VoicePause(1500),
        TurnEnd(2200, speech_end_ms=1500),
    ]


def test_a_pause_shorter_than_the_end_silence_does_not_end_the_turn() -> None:
    assert play((VOICE, 1000), (SILENCE, 699), (VOICE, 500), (SILENCE, 700)) == [
        VoiceStart(0),
        VoicePause(1000),
        VoiceResume(1699),
        VoicePause(2199),
        TurnEnd(2899, speech_end_ms=2199),
    ]


def test_voice_shorter_than_start_ms_is_nothing() -> None:
    assert play((SILENCE, 100), (VOICE, 59), (SILENCE, 1000)) == []
    assert play((SILENCE, 100), (VOICE, 60))[0] == VoiceStart(100)


def test_a_click_in_a_pause_does_not_delay_the_end() -> None:
    events = play((VOICE, 1000), (SILENCE, 400), (VOICE, 32), (SILENCE, 1000))
    assert events[-1] == TurnEnd(1700, speech_end_ms=1000)


def test_the_end_waits_for_voice_that_may_be_coming_back() -> None:
    until = [(VOICE, 1000), (SILENCE, 680), (VOICE, 40)]
    assert play(*until, (SILENCE, 100))[-1] == TurnEnd(1720, speech_end_ms=1000)
    assert play(*until, (VOICE, 100))[-1] == VoiceResume(1680)


def test_hysteresis() -> None:
    assert play((0.49, 5000)) == []
    assert play((0.5, 100), (0.35, 5000)) == [VoiceStart(0)]
    assert play((0.5, 100), (0.34, 5000))[1] == VoicePause(100)


def test_too_little_voice_is_a_false_start() -> None:
    assert play((VOICE, 119), (SILENCE, 1000)) == [VoiceStart(0), VoicePause(119), FalseStart(819)]
    assert play((VOICE, 120), (SILENCE, 1000))[-1] == TurnEnd(820, speech_end_ms=120)


def test_barge_in_comes_once_a_turn_when_the_voice_has_lasted() -> None:
    assert play((VOICE, 299, True)) == [VoiceStart(0)]
    assert play((SILENCE, 50, True), (VOICE, 2000, True), (SILENCE, 100, True), (VOICE, 2000, True)) == [
        VoiceStart(50),
        BargeIn(350),
        VoicePause(2050),
        VoiceResume(2150),
    ]


def test_an_agent_that_begins_while_the_caller_speaks_is_stopped_at_once() -> None:
    assert play((VOICE, 1000, False), (VOICE, 500, True)) == [VoiceStart(0), BargeIn(1000)]


def test_an_agent_that_begins_in_a_pause_is_not_stopped_by_the_pause() -> None:
    events = play((VOICE, 1000, False), (SILENCE, 300, True), (VOICE, 100, True))
    assert events[-2:] == [VoiceResume(1300), BargeIn(1360)]


def test_an_idle_agent_is_not_interrupted() -> None:
    assert not any(isinstance(event, BargeIn) for event in play((VOICE, 5000, False)))


def test_an_agent_that_may_not_be_interrupted_is_heard_out() -> None:
    settings = TurnSettings(interruptible=False)
    assert play((VOICE, 2000, True), (SILENCE, 700, True), settings=settings) == [
        VoiceStart(0),
        VoicePause(2000),
        TurnEnd(2700, speech_end_ms=2000),
    ]


def test_a_murmur_beside_the_agent_is_no_turn_but_the_same_word_to_an_idle_agent_is() -> None:
    assert play((VOICE, 250, True), (SILENCE, 700, True))[-1] == FalseStart(950)
    assert play((VOICE, 250, False), (SILENCE, 700, False))[-1] == TurnEnd(950, speech_end_ms=250)


def test_a_word_that_outlasts_the_agent_or_began_before_it_is_a_turn() -> None:
    slow = TurnSettings(start_ms=100)
    before = play((VOICE, 80, False), (VOICE, 100, True), (SILENCE, 700, True), settings=slow)
    assert before[-1] == TurnEnd(880, speech_end_ms=180)
    assert play((VOICE, 200, True), (VOICE, 50, False), (SILENCE, 700, False))[-1] == TurnEnd(950, speech_end_ms=250)


def test_an_endless_utterance_is_ended_and_the_next_begins_there() -> None:
    events = play((VOICE, 2 * MAX_UTTERANCE_MS + 100))
    ends = [TurnEnd(n * MAX_UTTERANCE_MS, speech_end_ms=n * MAX_UTTERANCE_MS) for n in (1, 2)]
    starts = [VoiceStart(n * MAX_UTTERANCE_MS) for n in (0, 1, 2)]
    assert MAX_UTTERANCE_MS == 60_000
    assert events == [starts[0], ends[0], starts[1], ends[1], starts[2]]


def test_an_hour_of_silence_and_probabilities_that_are_none() -> None:
    assert play((SILENCE, 3_600_000)) == []
    assert play((math.nan, 1000), (-1.0, 1000)) == []


def test_state_reset_and_the_clock_of_a_takeover() -> None:
    endpointer = Endpointer(TurnSettings(), now_ms=10_000)
    endpointer.push(VOICE, 100, False)
    assert (endpointer.in_turn, endpointer.speaking, endpointer.now_ms) == (True, True, 10_100)
    endpointer.push(SILENCE, 100, False)
    assert (endpointer.in_turn, endpointer.speaking) == (True, False)
    endpointer.reset()
    assert (endpointer.in_turn, endpointer.push(SILENCE, 5000, False)) == (False, [])
    assert endpointer.push(VOICE, 60, False) == [VoiceStart(15_200)]


def test_new_settings_hold_at_once() -> None:
    endpointer = Endpointer(TurnSettings())
    endpointer.push(VOICE, 500, False)
    endpointer.settings = TurnSettings(end_silence_ms=200)
    assert endpointer.push(SILENCE, 200, False)[-1] == TurnEnd(700, speech_end_ms=500)


windows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.34, 0.36, 0.5, 0.9]), st.integers(1, 900), st.booleans()), max_size=60
)
some_settings = st.builds(TurnSettings, st.integers(0, 200), st.integers(100, 1500), st.integers(0, 800), st.booleans())


@settings(deadline=None)
@given(windows, some_settings, st.data())
def test_the_same_audio_gives_the_same_events_in_any_pieces(
    heard: list[Heard], settings: TurnSettings, data: st.DataObject
) -> None:
    pieces: list[Heard] = []
    for probability, ms, busy in heard:
        cuts = sorted(data.draw(st.sets(st.integers(1, ms), max_size=4)) | {ms})
        pieces += [(probability, b - a, busy) for a, b in zip([0, *cuts], cuts, strict=False)]
    assert play(*pieces, settings=settings) == play(*heard, settings=settings)


@settings(deadline=None)
@given(windows, some_settings)
def test_events_come_in_an_order_that_makes_sense(heard: list[Heard], settings: TurnSettings) -> None:
    may_follow: dict[type, set[type]] = {
        type(None): {VoiceStart},
        VoiceStart: {VoicePause, BargeIn, TurnEnd},
        VoicePause: {VoiceResume, TurnEnd, FalseStart},
        VoiceResume: {VoicePause, BargeIn, TurnEnd},
        BargeIn: {VoicePause, TurnEnd},
        TurnEnd: {VoiceStart},
        FalseStart: {VoiceStart},
    }
    before: type = type(None)
    barged = 0
    for event in play(*heard, (SILENCE, 5000, False), settings=settings):
        assert type(event) in may_follow[before]
        before = type(event)
        barged = 0 if isinstance(event, VoiceStart) else barged + isinstance(event, BargeIn)
        assert barged <= 1
    assert before in (type(None), TurnEnd, FalseStart)
