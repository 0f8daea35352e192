"""How loud voices are is known as soon as it was heard, here or by who had the session before."""

import numpy as np
import pytest

from meshag.loudness import Loudness
from meshag.stages.levels import Levels

pytestmark = pytest.mark.unit

OWN, OTHER = ("own", b"{}"), ("other", b"{}")
RATE_HZ = 24_000


def tone(db: float, ms: int = 400) -> bytes:
    at = np.arange(RATE_HZ * ms // 1000) / RATE_HZ
    return (32767 * 10 ** (db / 20) * np.sqrt(2) * np.sin(2 * np.pi * 440 * at)).astype("<i2").tobytes()


def level_db(pcm: bytes) -> float:
    loudness = Loudness(RATE_HZ)
    loudness.push(pcm)
    return loudness.heard()[0]


def test_a_voice_that_breaks_off_in_its_first_sentence_has_been_measured() -> None:
    levels = Levels()
    speaking = levels.fit(OWN, OWN, RATE_HZ)
    assert speaking.push(tone(-20.0)) == tone(-20.0)  # never done
    found = levels.level_db(OWN)
    assert found == pytest.approx(-20.0, abs=0.5)
    assert level_db(levels.fit(OTHER, OWN, RATE_HZ).push(tone(-30.0))) == pytest.approx(-20.0, abs=4.0)


def test_a_worker_that_was_told_of_a_voice_matches_others_to_it() -> None:
    levels = Levels()
    assert level_db(levels.fit(OTHER, OWN, RATE_HZ).push(tone(-30.0))) == pytest.approx(-30.0, abs=0.5)
    levels.told(OWN, -20.0)
    assert level_db(levels.fit(OTHER, OWN, RATE_HZ).push(tone(-30.0))) == pytest.approx(-20.0, abs=2.0)


def test_what_was_heard_here_counts_more_than_what_was_told() -> None:
    levels = Levels()
    levels.fit(OWN, OWN, RATE_HZ).push(tone(-20.0))
    heard_db = levels.level_db(OWN)
    levels.told(OWN, -5.0)
    assert levels.level_db(OWN) == heard_db
