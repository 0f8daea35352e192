"""The voice of the stand-ins: every word is a chord of two tones that tells which word it was.

`say` and `words_in` are each other's inverse, so that a test hears which sentence was spoken, and how often. All tones
are under 3.3 kHz: the words survive any rate from 8 kHz on.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

LEVEL_DB = -20.0
"""RMS of a word at no gain, dBFS."""

CHAR_MS, WORD_LEAST_MS, GAP_MS = 60, 150, 40

LOW_HZ = [300 + 40 * step for step in range(32)]
HIGH_HZ = [1700 + 50 * step for step in range(32)]


def code(word: str) -> int:
    """0 to 1023: what is heard of a word."""
    return zlib.crc32(word.encode()) % 1024


def codes(text: str) -> list[int]:
    """What is heard of a text."""
    return [code(word) for word in _words(text)]


def speak(text: str, rate_hz: int, gain_db: float = 0.0) -> Iterator[bytes]:
    """PCM16 mono of a text, word by word."""
    for word in _words(text):
        samples = max(WORD_LEAST_MS, CHAR_MS * len(word)) * rate_hz // 1000
        low, high = divmod(code(word), 32)
        at = np.arange(samples) * (2 * math.pi / rate_hz)
        chord = np.sin(at * LOW_HZ[low]) + np.sin(at * HIGH_HZ[high])
        edge = 5 * rate_hz // 1000
        chord[:edge] *= np.linspace(0, 1, edge)
        chord[-edge:] *= np.linspace(1, 0, edge)
        loud = chord * 32767 * 10 ** ((LEVEL_DB + gain_db) / 20)
        yield np.clip(loud, -32768, 32767).astype("<i2").tobytes() + bytes(GAP_MS * rate_hz // 1000 * 2)


def say(text: str, rate_hz: int, gain_db: float = 0.0) -> bytes:
    """The same in one piece."""
    return b"".join(speak(text, rate_hz, gain_db))


def words_in(pcm: bytes, rate_hz: int) -> list[int]:
    """The codes of the words in `pcm`, in order. What is shorter than 60 ms, a word cut off, is left out."""
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float64)
    block = rate_hz // 100
    whole = samples[: len(samples) // block * block].reshape(-1, block)
    loud = np.concatenate([[False], np.sqrt((whole**2).mean(axis=1)) > 32768 * 10 ** (-50 / 20), [False]])
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start < 6:
            continue
        word = samples[start * block : end * block]
        strength = np.abs(np.fft.rfft(word * np.hanning(len(word)), 8 * len(word)))
        hz = np.fft.rfftfreq(8 * len(word), 1 / rate_hz)
        found.append(32 * _nearest(strength, hz, LOW_HZ) + _nearest(strength, hz, HIGH_HZ))
    return found


def sentences_in(pcm: bytes, rate_hz: int, known: Iterable[str]) -> list[str]:
    """Which of the known sentences were spoken in full, in order; what is none of them is left out."""
    heard, at, found = words_in(pcm, rate_hz), 0, []
    by_length = sorted(known, key=lambda text: -len(codes(text)))
    while at < len(heard):
        match = next(
            (text for text in by_length if codes(text) and heard[at:][: len(codes(text))] == codes(text)), None
        )
        if match is not None:
            found.append(match)
        at += len(codes(match)) if match is not None else 1
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def _nearest(strength: "np.ndarray", hz: "np.ndarray", tones: list[int]) -> int:
    near = (hz > tones[0] - 25) & (hz < tones[-1] + 25)
    peak = hz[near][strength[near].argmax()]
    return int(np.abs(np.array(tones) - peak).argmin())
