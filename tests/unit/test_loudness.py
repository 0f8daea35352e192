"""How loud a voice is, and voices made equally loud."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag.audio import read_wav, to_floats
from meshag.loudness import GAIN_MOST_DB, Loudness, Matched, gain

pytestmark = pytest.mark.unit

RATE_HZ = 16_000
SPEECH = sorted((Path(__file__).parents[1] / "data" / "speech").glob("*.wav"))


def tone(db: float, ms: int, hz: float = 440.0) -> bytes:
    """A sine whose RMS is `db` dBFS."""
    at = np.arange(RATE_HZ * ms // 1000) / RATE_HZ
    return np.rint(32768 * math.sqrt(2) * 10 ** (db / 20) * np.sin(2 * math.pi * hz * at)).astype("<i2").tobytes()


def silence(ms: int) -> bytes:
    return bytes(RATE_HZ * ms // 1000 * 2)


def level(pcm: bytes) -> float:
    """The active level of a whole recording."""
    loudness = Loudness(RATE_HZ)
    loudness.push(pcm)
    assert loudness.level_db is not None
    return loudness.level_db


def pieces(pcm: bytes, first_ms: int, piece_ms: int) -> list[bytes]:
    """As a provider would send it."""
    first, size = first_ms * RATE_HZ // 1000 * 2, piece_ms * RATE_HZ // 1000 * 2
    return [pcm[:first], *(pcm[at : at + size] for at in range(first, len(pcm), size))]


def matched(pcm: bytes, reference_db: float, *, first_ms: int = 100, piece_ms: int = 100) -> bytes:
    match = Matched(reference_db, RATE_HZ)
    return b"".join(map(match.push, pieces(pcm, first_ms, piece_ms)))


class TestLoudness:
    @pytest.mark.parametrize("db", [-6.0, -20.0, -40.0])
    def test_the_level_of_a_tone_is_its_rms(self, db: float) -> None:
        assert level(tone(db, 500)) == pytest.approx(db, abs=0.1)

    def test_pauses_do_not_count(self) -> None:
        speech = tone(-20, 400)
        spaced = silence(2000) + speech[: len(speech) // 2] + silence(3000) + speech[len(speech) // 2 :] + silence(500)
        assert level(spaced) == pytest.approx(level(speech), abs=0.3)

    def test_a_quiet_room_does_not_count(self) -> None:
        assert level(tone(-48, 2000) + tone(-15, 400) + tone(-48, 2000)) == pytest.approx(-15, abs=0.3)

    def test_nothing_is_told_before_200_ms_of_speech(self) -> None:
        loudness = Loudness(RATE_HZ)
        assert loudness.level_db is None
        loudness.push(silence(5000) + tone(-20, 180))
        assert loudness.level_db is None
        loudness.push(tone(-20, 20))
        assert loudness.level_db == pytest.approx(-20, abs=0.1)

    @pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
    def test_how_it_is_cut_matters_little(self, path: Path) -> None:
        pcm = read_wav(path)[0]
        loudness = Loudness(RATE_HZ)
        for piece in pieces(pcm, 33, 77):
            loudness.push(piece)
        assert loudness.level_db == pytest.approx(level(pcm), abs=0.5)

    @pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
    def test_ten_db_quieter_is_heard_as_such(self, path: Path) -> None:
        pcm = read_wav(path)[0]
        assert level(gain(pcm, -10)) == pytest.approx(level(pcm) - 10, abs=1.5)

    def test_full_scale_and_nothing_are_fine(self) -> None:
        loudness = Loudness(RATE_HZ)
        loudness.push(b"")
        loudness.push(np.full(RATE_HZ, -32768, "<i2").tobytes())
        assert loudness.level_db == pytest.approx(0, abs=0.01)


class TestGain:
    def test_no_gain_is_the_same_audio(self) -> None:
        assert gain(tone(-6, 100), 0) == tone(-6, 100)

    @pytest.mark.parametrize("db", [-15.0, -3.0, 6.0, 12.0])
    def test_it_is_in_db(self, db: float) -> None:
        assert level(gain(tone(-30, 300), db)) == pytest.approx(-30 + db, abs=0.1)

    @given(st.lists(st.integers(-32768, 32767), max_size=50), st.floats(-40, 40))
    @settings(max_examples=200, deadline=None)
    def test_it_never_wraps_and_never_turns_the_wave_over(self, samples: list[int], db: float) -> None:
        before = np.array(samples, "<i2")
        after = np.frombuffer(gain(before.tobytes(), db), "<i2")
        assert len(after) == len(before)
        assert (np.sign(after) * np.sign(before) >= 0).all()
        order = np.argsort(before, kind="stable")
        assert (np.diff(after[order].astype(int)) >= 0).all()

    def test_peaks_are_bent_not_cut(self) -> None:
        loud = np.abs(to_floats(gain(tone(-6, 50), 6)))
        assert loud.max() < 1.0
        assert (loud == loud.max()).mean() < 0.1


class TestMatched:
    @pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
    @pytest.mark.parametrize("piece_ms", [20, 100, 200])
    @pytest.mark.parametrize("off_db", [-10, 0, 10])
    @pytest.mark.parametrize("reference_db", [-26, -20])
    def test_the_first_sentence_of_a_new_voice_is_as_loud_as_the_one_before(
        self, path: Path, piece_ms: int, off_db: int, reference_db: int
    ) -> None:
        own = read_wav(path)[0]
        given_ = gain(own, reference_db + off_db - level(own))
        out = matched(given_, reference_db, first_ms=min(100, piece_ms), piece_ms=piece_ms)
        assert len(out) == len(given_)
        assert abs(level(out) - reference_db) < 2.0

    @pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
    @pytest.mark.parametrize("off_db", [-10, 10])
    def test_a_voice_that_was_heard_before_is_right_from_its_first_piece(self, path: Path, off_db: int) -> None:
        own = read_wav(path)[0]
        given_ = gain(own, -23 + off_db - level(own))
        first = Matched(-23, RATE_HZ)
        for piece in pieces(given_, 100, 100):
            first.push(piece)
        assert first.level_db == pytest.approx(-23 + off_db, abs=1)
        second = Matched(-23, RATE_HZ, first.level_db)
        out = b"".join(map(second.push, pieces(given_, 100, 100)))
        assert abs(level(out) - -23) < 2.0

    def test_no_loud_moment_at_the_start_of_a_quiet_beginning(self) -> None:
        """A breath before the first word must not open the gain so far that the word bursts out."""
        out = matched(tone(-47, 300) + tone(-13, 600), -23, first_ms=20, piece_ms=20)
        blocks = to_floats(out).reshape(-1, RATE_HZ * 20 // 1000)
        loudest = 10 * np.log10(np.square(blocks).mean(axis=1).max())
        assert loudest < -23 + Matched.CREST_DB + 1

    def test_there_is_no_step_between_pieces(self) -> None:
        """On a slow wave, neighbouring samples differ by little; where the gain leaps, they do not."""
        wave = tone(-30, 400, hz=50.0) + tone(-18, 400, hz=50.0)
        out = to_floats(matched(wave, -20, first_ms=35, piece_ms=45))  # cut where the wave is far from zero
        limit = np.abs(np.diff(to_floats(wave))).max()
        assert np.abs(np.diff(out)).max() < 5 * limit

    @pytest.mark.parametrize(("db", "reference_db"), [(-49.0, -20), (-4.0, -40)])
    def test_the_gain_is_bounded(self, db: float, reference_db: int) -> None:
        out = matched(tone(db, 1000), reference_db)
        assert abs(level(out[len(out) // 2 :]) - db) == pytest.approx(GAIN_MOST_DB, abs=0.5)

    def test_silence_stays_silent(self) -> None:
        match = Matched(-20, RATE_HZ)
        assert match.push(silence(500)) == silence(500)
        assert match.push(b"") == b""
        assert match.level_db is None

    def test_what_is_known_of_a_voice_is_kept_until_it_is_measured_again(self) -> None:
        match = Matched(-20, RATE_HZ, -33.0)
        match.push(tone(-25, 100))
        assert match.level_db == -33.0
        match.push(tone(-25, 100))
        assert match.level_db == pytest.approx(-25, abs=0.2)
