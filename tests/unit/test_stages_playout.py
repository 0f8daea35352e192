"""What leaves for the caller: every sample once, in order, silence at once, and a true account of what was heard."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.frames import Played, Speech, SpeechEnded
from meshag.stages.playout import STEP_MS, Playout

pytestmark = pytest.mark.unit

HZ = 24_000
STEP = HZ * STEP_MS // 1000 * 2


def _pcm(samples: int, first: int = 0) -> bytes:
    """Samples that tell which they are."""
    return b"".join(struct.pack("<h", (first + i) % 32768) for i in range(samples))


def _speech(n: int, offset: int, samples: int, *, turn: int = 1, rate_hz: int = HZ) -> Speech:
    return Speech(turn=turn, n=n, offset=offset, rate_hz=rate_hz, pcm=_pcm(samples, 1000 * n + offset))


def _chunk_end(n: int, samples: int, *, turn: int = 1) -> SpeechEnded:
    return SpeechEnded(turn=turn, n=n, samples=samples, last=False)


def _reply_end(n: int, *, turn: int = 1) -> SpeechEnded:
    return SpeechEnded(turn=turn, n=n, samples=0, last=True)


def _give(playout: Playout, *frames: Speech | SpeechEnded) -> None:
    for frame in frames:
        if isinstance(frame, Speech):
            playout.add(frame)
        else:
            playout.end(frame)


def _drain(playout: Playout) -> tuple[bytes, list[Played]]:
    out, done = b"", []
    while playout.playing:
        pcm, played = playout.take()
        out += pcm
        done += played
    return out, done


REPLY: list[Speech | SpeechEnded] = [
    _speech(0, 0, 480), _speech(0, 480, 300), _chunk_end(0, 780),
    _speech(1, 0, 100), _speech(1, 100, 900), _chunk_end(1, 1000),
    _speech(2, 0, 7), _chunk_end(2, 7),
    _reply_end(3),
]  # fmt: skip
WHOLE = _pcm(780) + _pcm(1000, 1000) + _pcm(7, 2000)
HEARD = Played(turn=1, n=3, ms=0, chunk_ms=0, interrupted=False)


def test_a_reply_leaves_whole_in_steps_and_is_reported():
    playout = Playout(HZ)
    _give(playout, *REPLY)
    pieces = []
    while playout.playing:
        pcm, done = playout.take()
        pieces.append(len(pcm))
    assert set(pieces[:-1]) == {STEP}
    assert done == [HEARD]
    playout = Playout(HZ)
    _give(playout, *REPLY)
    assert _drain(playout) == (WHOLE, [HEARD])


def test_it_is_reported_with_its_last_audio_and_not_before():
    playout = Playout(HZ)
    _give(playout, *REPLY[:-1])
    assert _drain(playout)[1] == []
    _give(playout, REPLY[-1])
    assert playout.playing
    assert playout.take() == (b"", [HEARD])


@given(st.data())
def test_a_takeover_at_any_point_repeats_and_leaves_out_nothing(data: st.DataObject):
    """The new owner goes on from anywhere before the end of what the old one sent, in pieces of its own length."""
    playout = Playout(HZ)
    out = b""
    cut = data.draw(st.integers(0, len(REPLY)))
    _give(playout, *REPLY[:cut])
    for _ in range(data.draw(st.integers(0, 2))):
        out += playout.take()[0]
    size = data.draw(st.sampled_from([60, 240, 480, 1000]))
    again: list[Speech | SpeechEnded] = []
    for n, samples in enumerate((780, 1000, 7)):
        again += [_speech(n, at, min(size, samples - at)) for at in range(0, samples, size)]
        again.append(_chunk_end(n, samples))
    again.append(_reply_end(3))
    done: list[Played] = []
    for frame in again:
        _give(playout, frame)
        if data.draw(st.booleans()):
            pcm, played = playout.take()
            out, done = out + pcm, done + played
    pcm, played = _drain(playout)
    assert out + pcm == WHOLE
    assert done + played in ([HEARD], []) if cut == len(REPLY) else done + played == [HEARD]


def test_a_reply_said_again_after_its_end_is_not_heard_again():
    playout = Playout(HZ)
    _give(playout, *REPLY)
    assert _drain(playout) == (WHOLE, [HEARD])
    _give(playout, *REPLY)
    assert not playout.playing


def test_the_end_of_an_earlier_chunk_said_again_does_not_open_the_way_for_a_repetition():
    playout = Playout(HZ)
    _give(playout, *REPLY[:5])
    _give(playout, *REPLY)
    assert _drain(playout) == (WHOLE, [HEARD])


def test_an_older_turn_is_silent_when_a_newer_one_has_begun():
    playout = Playout(HZ)
    _give(playout, _speech(0, 0, 480, turn=2), _speech(0, 0, 480, turn=1), _chunk_end(0, 480, turn=1))
    assert _drain(playout) == (_pcm(480), [])


def test_an_interrupt_silences_the_turn_and_those_before_it_and_what_comes_late():
    playout = Playout(HZ)
    _give(playout, *REPLY, _speech(0, 0, 480, turn=2))
    playout.take()
    assert playout.interrupt(1) is not None
    _give(playout, *REPLY)
    assert _drain(playout) == (_pcm(480), [])
    assert playout.interrupt(1) is None
    assert playout.interrupt(0) is None


def test_what_was_heard_of_an_interrupted_reply():
    playout = Playout(HZ)
    second = HZ  # samples
    _give(playout, _speech(0, 0, second), _chunk_end(0, second), _speech(1, 0, second), _chunk_end(1, second))
    for _ in range((1000 + 400) // STEP_MS):
        playout.take()
    played = playout.interrupt(1)
    assert played == Played(turn=1, n=1, ms=400, chunk_ms=1000, interrupted=True)


def test_of_a_reply_that_had_not_begun_nothing_was_heard():
    playout = Playout(HZ)
    played = playout.interrupt(3)
    assert played == Played(turn=3, n=0, ms=0, chunk_ms=0, interrupted=True)
    _give(playout, _speech(0, 0, HZ, turn=4), _chunk_end(0, HZ, turn=4))
    played = playout.interrupt(4)
    assert played is not None
    assert (played.n, played.ms, played.interrupted) == (0, 0, True)


def test_a_chunk_without_audio_counts_as_heard():
    playout = Playout(HZ)
    _give(playout, _chunk_end(0, 0), _speech(1, 0, 480), _chunk_end(1, 480), _reply_end(2))
    assert _drain(playout) == (_pcm(480, 1000), [Played(turn=1, n=2, ms=0, chunk_ms=0, interrupted=False)])


def test_a_reply_without_audio_is_over_at_once():
    playout = Playout(HZ)
    _give(playout, _reply_end(0))
    assert _drain(playout) == (b"", [Played(turn=1, n=0, ms=0, chunk_ms=0, interrupted=False)])


@pytest.mark.parametrize("from_hz", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("to_hz", [8_000, 24_000, 44_100])
def test_a_voice_is_brought_to_the_callers_rate_and_keeps_its_length(from_hz: int, to_hz: int):
    playout = Playout(to_hz)
    tone = b"".join(struct.pack("<h", int(9000 * math.sin(2 * math.pi * 200 * i / from_hz))) for i in range(from_hz))
    for at in range(0, from_hz, 441):
        pcm = tone[2 * at : 2 * (at + 441)]
        playout.add(Speech(turn=1, n=0, offset=at, rate_hz=from_hz, pcm=pcm))
    _give(playout, _chunk_end(0, from_hz), _reply_end(1))
    out, done = _drain(playout)
    assert abs(len(out) // 2 - to_hz) <= to_hz // 200
    assert len(done) == 1
    loud = max(abs(value) for (value,) in struct.iter_unpack("<h", out[len(out) // 4 : -len(out) // 4]))
    assert 8000 < loud < 10_000


def test_a_second_voice_of_another_rate_goes_on_where_the_first_broke_off():
    playout = Playout(HZ)
    playout.add(Speech(turn=1, n=0, offset=0, rate_hz=HZ, pcm=bytes(2 * HZ // 2)))  # half a second
    playout.add(Speech(turn=1, n=0, offset=0, rate_hz=16_000, pcm=bytes(2 * 16_000)))  # the whole second, again
    _give(playout, _chunk_end(0, 16_000), _reply_end(1))
    out, _ = _drain(playout)
    assert abs(len(out) // 2 - HZ) <= HZ // 200


# -- another voice takes over a chunk ---------------------------------------------------------------------------------


def _take(n: int, take: int, offset: int, samples: int, value: int) -> Speech:
    pcm = struct.pack("<h", value) * samples
    return Speech(turn=1, n=n, offset=offset, rate_hz=HZ, pcm=pcm, take=take)


def _values(pcm: bytes) -> list[int]:
    return sorted(set(struct.unpack(f"<{len(pcm) // 2}h", pcm)))


def test_another_voice_replaces_what_was_not_heard_of_the_first():
    playout = Playout(HZ)
    _give(playout, _take(0, 0, 0, 9_600, 1), _take(0, 1, 0, 4_800, 2), _chunk_end(0, 4_800), _reply_end(1))
    heard, done = _drain(playout)
    assert _values(heard) == [2]
    assert len(heard) == 2 * 4_800
    assert [played.n for played in done] == [1]


def test_another_voice_begins_a_sentence_anew_that_was_heard_in_part():
    playout = Playout(HZ)
    _give(playout, _take(0, 0, 0, 9_600, 1))
    first, _ = playout.take()
    _give(playout, _take(0, 1, 0, 4_800, 2), _take(0, 1, 4_800, 4_800, 2), _chunk_end(0, 9_600), _reply_end(1))
    heard, _ = _drain(playout)
    assert _values(first) == [1]
    assert _values(heard) == [2]
    assert len(heard) == 2 * 9_600


def test_the_account_of_what_was_heard_follows_the_new_voice():
    playout = Playout(HZ)
    _give(playout, _take(0, 0, 0, 9_600, 1))
    playout.take()
    playout.take()
    _give(playout, _take(0, 1, 0, 48_000, 2))
    playout.take()
    played = playout.interrupt(1)
    assert played == Played(turn=1, n=0, ms=STEP_MS, chunk_ms=2_000, interrupted=True)


def test_a_late_word_of_the_former_voice_is_dropped():
    playout = Playout(HZ)
    _give(playout, _take(0, 1, 0, 4_800, 2), _take(0, 0, 9_600, 4_800, 1), _chunk_end(0, 4_800), _reply_end(1))
    heard, _ = _drain(playout)
    assert _values(heard) == [2]


def test_sentences_before_and_after_stay_as_they_were():
    playout = Playout(HZ)
    _give(playout, _take(0, 0, 0, 960, 1), _chunk_end(0, 960), _take(1, 0, 0, 960, 2), _take(1, 1, 0, 960, 3))
    _give(playout, _chunk_end(1, 960), _take(2, 0, 0, 960, 4), _chunk_end(2, 960), _reply_end(3))
    heard, done = _drain(playout)
    assert _values(heard) == [1, 3, 4]
    assert len(heard) == 3 * 2 * 960
    assert done == [Played(turn=1, n=3, ms=0, chunk_ms=0, interrupted=False)]
