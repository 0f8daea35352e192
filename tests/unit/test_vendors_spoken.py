"""The tones that stand for words are heard as they were spoken."""

import random

import pytest

from meshag.audio import FRAME_BYTES, Resampler
from vendors.spoken import WORDS, Ear, hear, speak

pytestmark = pytest.mark.unit


def test_every_word_of_the_vocabulary_is_heard() -> None:
    assert len(set(WORDS)) >= 32
    assert hear(speak(WORDS)) == WORDS


def test_a_word_said_twice_is_two_words() -> None:
    assert hear(speak("echo echo echo")) == ["echo"] * 3


def test_silence_holds_no_word() -> None:
    assert hear(bytes(32_000)) == []
    assert hear(speak("")) == []


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_length_at_any_place(seed: int) -> None:
    rng = random.Random(seed)
    said = rng.choices(WORDS, k=12)
    pcm = bytes(2 * rng.randrange(400)) + speak(said)
    ear = Ear()
    while pcm:
        size = rng.randrange(1, 3_000)
        ear.push(pcm[:size])
        pcm = pcm[size:]
    assert ear.words == said


@pytest.mark.parametrize("seed", range(10))
def test_cut_between_words_nothing_is_lost_or_doubled(seed: int) -> None:
    rng = random.Random(seed)
    first, second = rng.choices(WORDS, k=5), rng.choices(WORDS, k=5)
    pcm = speak(first, tail_ms=0) + speak(second, lead_ms=0)
    cut = len(speak(first, tail_ms=0)) - 2 * rng.randrange(1, 900)
    assert hear(pcm[:cut]) + hear(pcm[cut:]) == first + second


def test_resampled_speech_is_still_heard() -> None:
    said = random.Random(1).sample(WORDS, len(WORDS))
    pcm = speak(said)
    resampler = Resampler(16_000, 24_000)
    there = b"".join(resampler.push(pcm[at : at + FRAME_BYTES]) for at in range(0, len(pcm), FRAME_BYTES))
    assert hear(there + resampler.push(b"", last=True), 24_000) == said


def test_interims_are_the_words_so_far() -> None:
    said = ["alpha", "zulu", "golf"]
    pcm, ear, seen = speak(said), Ear(), []
    for at in range(0, len(pcm), FRAME_BYTES):
        ear.push(pcm[at : at + FRAME_BYTES])
        seen.append(list(ear.words))
    assert [said[:count] for count in range(4)] == sorted({tuple(words): words for words in seen}.values(), key=len)
