"""A recorded conversation with three takeovers against the present code: the same; and what a change does to it."""

import argparse
import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshag import clock
from meshag.commands import replay as command
from meshag.commands import show
from meshag.errors import ConfigError
from meshag.frames import AudioIn, Frame, Interrupt, Played, Speech, TurnEnded, VoiceStarted, encode
from meshag.recording import file
from meshag.recording.file import Configured, End, Framed, Header, Recording
from meshag.recording.replay import Replayed, replay
from meshag.recording.tape import Tape
from meshag.recording.timeline import timeline
from meshag.recording.virtual import Stuck, run, until
from meshag.recording.waterfall import lines
from meshag.stages import llm
from meshag.stages.llm import LlmSession
from meshag.stages.playout import Playout
from meshag.stages.stt import SttSession
from meshag.stages.tts import TtsSession
from meshag.turns import sentences
from recordings import RECORDINGS

pytestmark = pytest.mark.unit

PATH = RECORDINGS / "takeovers.mesh"


@pytest.fixture
def recording() -> Recording:
    return file.read(PATH)


def told(found: Replayed, stage: str) -> list[tuple[int, str]]:
    return [(one.turn, one.what) for one in found.differences if one.stage == stage]


# -- the recorded conversation ----------------------------------------------------------------------------------------


def test_the_recording_holds_what_it_is_for(recording: Recording) -> None:
    tape = Tape(recording)
    assert {one.stage for one in tape.owners if one.epoch == 2} == {"stt", "llm", "tts"}
    assert any(True for _ in tape.of(Interrupt))
    assert [frame.turn for _, frame in tape.of(Played)] == [1, 2, 3, 4, 5, 6]
    assert sorted(recording.said) == [1, 2, 3, 4, 5, 6]
    assert not recording.cut_off


def test_the_present_code_does_the_same(recording: Recording) -> None:
    found = replay(recording)
    assert found.differences == []
    assert (found.turns, found.notes) == (6, [])
    assert found.stages == ["stt", "llm", "tts", "transport"]
    assert replay(recording) == found


def test_other_chunks_are_told_turn_by_turn(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "MIN_CHARS", 80)
    found = replay(recording)
    assert {turn for turn, _ in told(found, "llm")} >= {1, 3, 4, 6}
    one = next(one for one in found.differences if (one.turn, one.what) == (1, "chunk 1"))
    assert one.recorded == "Your order left our warehouse this morning and is moving. "
    assert one.replayed == f"{one.recorded}It should reach your front door by tomorrow around noon. "
    assert {one.stage for one in found.differences} == {"llm"}, "the others hear what they heard then"


def test_another_history_is_told_in_its_turn(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "heard", lambda *_: "all of it")
    assert told(replay(recording), "history") == [(2, "reply")]


def test_a_voice_that_does_not_fall_silent_is_told(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TtsSession, "on_signal", lambda self, frame: None)
    assert {turn for turn, _ in told(replay(recording), "tts")} >= {2}


def test_a_playout_that_does_not_fall_silent_is_told(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Playout, "interrupt", lambda self, turn: None)
    assert (2, "broken off") in told(replay(recording), "transport")


@pytest.mark.parametrize(
    ("session", "stage", "turn"), [(SttSession, "stt", 4), (LlmSession, "llm", 5), (TtsSession, "tts", 6)]
)
def test_a_takeover_that_resumes_nothing_is_told(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, session: Any, stage: str, turn: int
) -> None:
    monkeypatch.setattr(session, "resume", session.hear_from_now)
    assert turn in {at for at, _ in told(replay(recording), stage)}


def test_what_a_stage_breaks_on_is_told(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, frame: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LlmSession, "on_signal", broken)
    found = replay(recording)
    assert any("ZeroDivisionError" in str(one.replayed) for one in found.differences)


def listened(end_silence_ms: int) -> Recording:
    """Five seconds of a caller who speaks from the 30th frame to the 99th, to a session that only listens."""
    step_ns, began_ns = 20 * clock.MS, 10**18
    flow = [{"from": "transport", "to": "stt", "stream": "audio"}, {"from": "stt", "to": "transport", "stream": "text"}]
    config = {
        "connectors": {"stt": {"primary": "recorded"}},
        "pipeline": {"flow": flow},
        "turns": {"end_silence_ms": end_silence_ms},
    }
    said: list[tuple[int, str, Frame]] = [
        (n * step_ns, "audio.input", AudioIn(seq=n, epoch=1, at_ns=began_ns + n * step_ns, pcm=bytes(640)))
        for n in range(250)
    ]
    heard = TurnEnded(turn=1, seq=1, epoch=1, text="Hi.", audio_seq=135, speech_end_ns=began_ns + 99 * step_ns)
    said += [
        (30 * step_ns + 1, "stt.output", VoiceStarted(turn=1, seq=0, epoch=1, audio_seq=30, audio_epoch=1)),
        (135 * step_ns + 1, "stt.output", msgspec.structs.replace(heard, audio_epoch=1)),
    ]
    frames = [Framed(kind, n, began_ns + at, encode(frame)) for n, (at, kind, frame) in enumerate(said)]
    frames.sort(key=lambda one: one.at_ns)
    return Recording(
        Header("a" * 26), frames, [Configured(1, {"config": config})], end=End("ended", began_ns, len(frames))
    )


def test_turns_that_end_later_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the voice detector is not installed its place is taken by the recorded voice."""
    monkeypatch.setattr("meshag.recording.voice.can_hear", lambda _: False)
    same = replay(listened(700))
    assert (same.differences, same.turns, same.stages) == ([], 1, ["stt"])
    assert "not installed" in same.notes[0]
    late = {one.what: one for one in replay(listened(900)).differences}
    assert late["ended at audio frame"].recorded == 135
    assert late["ended at audio frame"].replayed in range(143, 148)


def test_without_a_configuration_it_cannot_be_replayed(recording: Recording) -> None:
    recording.configs.clear()
    with pytest.raises(ConfigError, match="cannot be replayed") as refused:
        replay(recording)
    assert refused.value.code == "recording_incomplete"


def test_of_a_recording_that_was_cut_off_the_rest_is_compared(recording: Recording) -> None:
    played = next(at for at, frame in Tape(recording).of(Played) if frame.turn == 5)
    recording.frames = [one for one in recording.frames if one.at_ns <= played]
    recording.said = {turn: data for turn, data in recording.said.items() if turn < 5}
    recording.end = None
    found = replay(recording)
    assert found.differences == []
    assert found.turns == 5
    assert "cut off" in found.notes[0]


def test_without_its_first_minute_the_later_turns_are_compared(recording: Recording) -> None:
    first = next(at for at, _ in Tape(recording).of(Speech))
    recording.frames = [
        one for one in recording.frames if one.subject not in ("audio.input", "tts.output") or one.at_ns > first
    ]
    found = replay(recording)
    assert found.differences == []
    assert "tts: the recording lacks its audio before turn 2" in found.notes


# -- the commands -----------------------------------------------------------------------------------------------------


def arguments(path: Path, *, as_json: bool = False) -> argparse.Namespace:
    return argparse.Namespace(file=str(path), json=as_json)


def test_the_exit_status_tells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.run(arguments(PATH)) == 0
    assert "the same. 6 turns" in capsys.readouterr().out
    monkeypatch.setattr(sentences, "MIN_CHARS", 80)
    assert command.run(arguments(PATH, as_json=True)) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["same"] is False
    assert {"turn", "stage", "what", "recorded", "replayed"} == set(shown["differences"][0])


def test_the_timeline_tells_who_did_what_and_when(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(arguments(PATH, as_json=True)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["totals"]["turns"] == 6
    assert shown["totals"]["interrupted"] == 1
    assert shown["totals"]["owners_replaced"] == 3
    turns = {turn["turn"]: turn for turn in shown["turns"]}
    assert turns[1]["user"] == "Where is my order number 1?"
    assert turns[2]["interrupted"]
    assert turns[2]["reply"].startswith(turns[2]["heard"])
    assert turns[3]["kind"] == "typed"
    whats = [event["what"] for event in turns[1]["events"]]
    order = ["caller speaks", "interim", "final", "reply begins", "chunk 0", "speech 0", "plays", "played"]
    assert [what for what in whats if what in order] == order
    assert turns[1]["voice_to_voice_ms"] > 0
    owners = [event for event in turns[5]["events"] if event["what"] == "owner"]
    workers = {event["worker"] for event in turns[5]["events"] if event["stage"] == "llm"}
    assert [event["stage"] for event in owners] == ["llm"]
    assert len(workers) == 2
    text = "\n".join(lines(timeline(Tape(recording))))
    assert "turn 6  spoken  voice to voice" in text
    assert max(map(len, text.splitlines())) <= 120


def test_nothing_that_was_said_moves_the_cursor(recording: Recording) -> None:
    told = timeline(Tape(recording))
    told.turns[1].user = "\x1b[2J\r\nturn 99 \u202e"
    text = "\n".join(lines(told))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert "\nturn 99" not in text


def test_a_file_that_was_cut_off_is_shown_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.mesh"
    path.write_bytes(PATH.read_bytes()[: PATH.stat().st_size * 2 // 3])
    assert show.run(arguments(path)) == 0
    shown = capsys.readouterr()
    assert "turn 1  spoken" in shown.out
    assert ": cut off" in shown.out
    assert "was cut off" in shown.err


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.mesh"
    for data in (b"", b"hello", gzip.compress(b'{"format": "something else"}\n')):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="is not a recording"):
            show.run(arguments(path))


# -- virtual time -----------------------------------------------------------------------------------------------------


def test_virtual_time_passes_only_while_everybody_waits() -> None:
    async def work() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []

        async def one(name: str, at_ns: int) -> None:
            await until(at_ns)
            seen.append((name, clock.wall_ns()))

        await asyncio.gather(one("later", 3_600 * 10**9), one("sooner", 10**9), one("past", 0))
        assert await asyncio.to_thread(lambda: 5) == 5
        return seen

    before_ns = clock.wall_ns()
    assert [name for name, _ in run(work(), now_ns=10**6)] == ["past", "sooner", "later"]
    assert run(work(), now_ns=10**6) == run(work(), now_ns=10**6)
    assert clock.wall_ns() - before_ns < 60 * 10**9, "the real clock is back, and no hour has passed"


def test_what_would_wait_for_ever_is_told() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        run(work(), now_ns=0)
