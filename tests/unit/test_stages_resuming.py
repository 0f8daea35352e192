"""Where a caller had come to: a new playout goes on where the former one was cut, whatever that had played."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag import clock
from meshag.frames import AnyFrame, Played, ReplyChunk, Speech, SpeechEnded, Transcript, TurnEnded
from meshag.stages.playout import LEAD_MS, STEP_MS, Playout
from meshag.stages.resuming import NOWHERE, Left, Past, catch_up, parse_place

pytestmark = pytest.mark.unit

HZ = 24_000
BEGAN_NS = 1_000_000_000_000


def _pcm(first: int, samples: int) -> bytes:
    """Samples that tell which they are."""
    return struct.pack(f"<{samples}h", *((first + i) % 30_011 for i in range(samples)))


def reply(chunks_ms: list[int], *, turn: int = 1, pace: float = 0.1) -> list[Speech | SpeechEnded]:
    """Chunks in pieces of 20 ms, each so much of its length after the one before it. All samples differ."""
    frames: list[Speech | SpeechEnded] = []
    at_ns, position = BEGAN_NS, 0
    for n, length_ms in enumerate(chunks_ms):
        for done_ms in range(0, length_ms, 20):
            offset, samples = HZ * done_ms // 1000, HZ * 20 // 1000
            pcm = _pcm(position, samples)
            frames.append(Speech(turn=turn, n=n, offset=offset, rate_hz=HZ, pcm=pcm, at_ns=at_ns))
            position += samples
            at_ns += int(20 * clock.MS * pace)
        frames.append(SpeechEnded(turn=turn, n=n, samples=HZ * length_ms // 1000, last=False, at_ns=at_ns))
    frames.append(SpeechEnded(turn=turn, n=len(chunks_ms), samples=0, last=True, at_ns=at_ns))
    return frames


def sound(frames: list[Speech | SpeechEnded]) -> bytes:
    return b"".join(frame.pcm for frame in frames if isinstance(frame, Speech))


def rest(playout: Playout) -> tuple[bytes, list[Played]]:
    out, over = b"", []
    while playout.playing:
        pcm, done = playout.take()
        out += pcm
        over += done
    return out, over


@given(
    chunks_ms=st.lists(st.integers(1, 40).map(lambda n: 20 * n), min_size=1, max_size=4),
    part=st.floats(0, 1),
    pace=st.sampled_from([0.0, 0.1, 1.5]),
)
@settings(deadline=None)
def test_what_the_caller_has_heard_is_not_said_again_and_the_rest_is(
    chunks_ms: list[int], part: float, pace: float
) -> None:
    frames = reply(chunks_ms, pace=pace)
    heard_ms = int(sum(chunks_ms) * part)
    playout = Playout(HZ)
    over, told_ms = catch_up(playout, HZ, frames, Left("", 1, heard_ms), 0)
    left, later = rest(playout)
    assert left == sound(frames)[2 * (HZ * heard_ms // 1000) :]
    assert [one.turn for one in over + later] == [1]
    if left:
        assert abs(told_ms - heard_ms) <= 1


@given(heard_ms=st.integers(0, 2000), pace=st.sampled_from([0.1, 0.9, 1.6]))
@settings(deadline=None)
def test_where_nobody_counted_it_goes_on_where_the_former_one_would_be(heard_ms: int, pace: float) -> None:
    """A voice slower than real time leaves holes: they are not taken for speech."""
    frames = reply([400, 800, 600], pace=pace)
    at_ns = BEGAN_NS + heard_ms * clock.MS
    playout = Playout(HZ)
    catch_up(playout, HZ, frames, None, at_ns)
    spoken = len(sound(frames)) - len(rest(playout)[0])
    played_ms = spoken * 500 // HZ
    expected_ms = min(1800, heard_ms if pace < 1 else int(heard_ms / pace))
    assert expected_ms - 40 <= played_ms <= expected_ms + 2 * STEP_MS


def test_what_a_voice_that_broke_off_had_said_counts() -> None:
    """Two pieces of the first voice were played before the second one began the chunk anew."""
    first = [Speech(turn=1, n=0, offset=480 * i, rate_hz=HZ, pcm=_pcm(480 * i, 480), at_ns=BEGAN_NS) for i in range(10)]
    later_ns = BEGAN_NS + 80 * clock.MS
    second = [
        Speech(turn=1, n=0, offset=480 * i, rate_hz=HZ, pcm=_pcm(9000 + 480 * i, 480), take=1, at_ns=later_ns)
        for i in range(10)
    ]
    playout = Playout(HZ)
    catch_up(playout, HZ, [*first, *second], Left("", 1, 80 + 60), 0)
    assert rest(playout)[0] == b"".join(frame.pcm for frame in second)[2 * 24 * 60 :]


def test_a_reply_longer_than_the_journal_goes_on_near_the_caller_s_ear() -> None:
    whole = reply([6_000] * 3, pace=1.0)
    kept = [frame for frame in whole if frame.at_ns > BEGAN_NS + 5_000 * clock.MS]
    playout = Playout(HZ)
    catch_up(playout, HZ, kept, Left("", 1, 7_000), BEGAN_NS + 10_000 * clock.MS)
    spoken_ms = (len(sound(kept)) - len(rest(playout)[0])) * 500 // HZ
    assert abs(spoken_ms - (5_000 - LEAD_MS)) <= 2 * STEP_MS


def test_an_account_of_another_turn_says_nothing_of_this_one() -> None:
    frames = reply([200], turn=3)
    playout = Playout(HZ)
    assert catch_up(playout, HZ, frames, Left("", 2, 150), 0) == ([], 0)
    assert rest(playout)[0] == sound(frames)


def test_more_than_there_was_is_all_of_it() -> None:
    playout = Playout(HZ)
    over, _ = catch_up(playout, HZ, [*reply([200]), *reply([100], turn=2)], Left("", 1, 90_000), 0)
    left, later = rest(playout)
    assert ([one.turn for one in over], [one.turn for one in later]) == ([1], [2])
    assert left == sound(reply([100], turn=2))


def test_how_far_an_answer_was_heard_that_was_cut_off_while_nobody_was_there() -> None:
    past = Past(silenced=1, silenced_ns=BEGAN_NS + 500 * clock.MS, frames={"tts": list(reply([400, 400]))})
    told = past.cut_off(None)
    assert told is not None
    assert (told.turn, told.n, told.interrupted) == (1, 1, True)
    assert 60 <= told.ms <= 140
    counted = past.cut_off(Left("", 1, 420))
    assert counted is not None
    assert (counted.n, counted.ms) == (1, 20)
    assert past.speech(1) == []
    past.reported.add(1)
    assert past.cut_off(None) is None


def test_an_answer_is_told_after_what_it_answers() -> None:
    stt: list[AnyFrame] = [
        Transcript(turn=1, text="a", final=True), TurnEnded(turn=1, text="a", audio_seq=1, speech_end_ns=1),
        Transcript(turn=2, text="b", final=True), TurnEnded(turn=2, text="b", audio_seq=2, speech_end_ns=2),
    ]  # fmt: skip
    llm: list[AnyFrame] = [ReplyChunk(turn=1, n=0, text="A"), ReplyChunk(turn=2, n=0, text="B")]
    told = Past(frames={"llm": llm, "stt": stt, "tts": list(reply([20]))}).told()
    assert [frame for _, frame in told] == [*stt[:2], llm[0], *stt[2:], llm[1]]


def test_a_place_is_what_it_was_told_as_or_nothing() -> None:
    assert parse_place(NOWHERE) == {"stt": (0, 0), "llm": (0, 0), "tts": (0, 0)}
    assert parse_place("1.2-3.4-5.6") == {"stt": (1, 2), "llm": (3, 4), "tts": (5, 6)}
    many = "1" * 10 + ".0-0.0-0.0"
    for text in ("", "1.2-3.4", "1.2-3.4-5.6-7.8", "1.2-3.4-5.6\n", "a.b-c.d-e.f", "-1.2-3.4-5.6", many):
        assert parse_place(text) is None
