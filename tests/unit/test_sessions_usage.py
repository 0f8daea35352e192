"""Counters as they are told, and the hops of a turn."""

import pytest

from meshag import clock
from meshag.frames import ReplyChunk, Speech, TurnEnded
from meshag.sessions import usage
from meshag.stages.laps import KEPT, Laps

pytestmark = pytest.mark.unit


def test_counters_are_told_by_stage_and_provider() -> None:
    stored = {
        usage.HEARD_MS: "1500",
        usage.TOOL_CALLS: "2",
        usage.tokens("openai", "in"): "120",
        usage.tokens("openai", "out"): "30",
        usage.characters("eleven/labs"): "99",
        usage.recognised_ms("local"): "1400",
        "turn/llm": "2",
        "turn/stt": "3",
        "something/of/a/newer/version": "x",
    }
    told = usage.told(stored)
    assert told["turns"] == 3
    assert told["usage"] == {
        "heard_ms": 1500,
        "tool_calls": 2,
        "stt": {"local": {"audio_ms": 1400}},
        "llm": {"openai": {"input_tokens": 120, "output_tokens": 30}},
        "tts": {"eleven/labs": {"characters": 99}},
    }


def test_latencies_are_ranked() -> None:
    stored = {f"latency/{turn}": f'{{"voice_to_voice": {turn * 10}}}' for turn in range(1, 101)}
    stored["latency/101"] = '{"voice_to_voice": 5, "llm": 3}'
    told = usage.told(stored)["latency_ms"]
    assert told["voice_to_voice"] == {"turns": 101, "last": 5, "p50": 500, "p95": 950}
    assert told["llm"] == {"turns": 1, "last": 3, "p50": 3, "p95": 3}
    assert told["tts"] == {"turns": 0, "last": None, "p50": None, "p95": None}


def test_nothing_was_counted() -> None:
    told = usage.told({})
    assert told["turns"] == 0
    assert told["usage"]["llm"] == {}


def test_the_hops_of_a_turn_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    laps = Laps()
    laps.note(TurnEnded(turn=1, text="Hi", audio_seq=1, speech_end_ns=1_000 * clock.MS, at_ns=1_700 * clock.MS))
    laps.note(ReplyChunk(turn=1, n=0, text="One moment.", filler=True, at_ns=1_750 * clock.MS))
    laps.note(ReplyChunk(turn=1, n=1, text="Hello.", at_ns=1_900 * clock.MS))
    laps.note(ReplyChunk(turn=1, n=2, text="You.", at_ns=5_000 * clock.MS))
    laps.note(Speech(turn=1, n=0, offset=0, rate_hz=8000, pcm=b"", at_ns=1_980 * clock.MS))
    monkeypatch.setattr(clock, "wall_ns", lambda: 2_000 * clock.MS)
    assert laps.heard(1) == {"voice_to_voice": 1_000, "stt": 700, "llm": 200, "tts": 80, "transport": 20}
    assert laps.heard(1) == {}


def test_what_was_said_unasked_took_no_time() -> None:
    laps = Laps()
    laps.note(ReplyChunk(turn=1, n=0, text="Hello.", at_ns=1))
    assert laps.heard(1) == {}
    laps.note(TurnEnded(turn=2, text="", audio_seq=1, speech_end_ns=1, at_ns=2))
    assert laps.heard(2) == {}


def test_turns_that_nobody_heard_are_forgotten() -> None:
    laps = Laps()
    for turn in range(1, 100):
        laps.typed(turn)
    assert len(laps._marks_ns) == KEPT
    assert laps.heard(1) == {}
    assert laps.heard(99)["voice_to_voice"] >= 0
