"""Speech for stand-ins: each word is a tone, so that they hear exactly what was said, and tests see every word lost.

    word: 200 ms of its own tone · gap: 60 ms of silence

A tone is one of 40 frequencies that have whole periods in 20 ms: they do not disturb each other within a window. What
is heard of a word cut in two depends on the cut: half of it (100 ms) is enough, less is not heard.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from aiohttp import web

RATE_HZ = 16_000
WORD_MS, GAP_MS, WINDOW_MS = 200, 60, 20
ENOUGH_WINDOWS = 4
QUIET = 400.0
"""RMS (full scale 32768) below which a window is silence."""

WORDS = [
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima",
    "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray",
    "yankee", "zulu", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero", "please",
    "thanks", "hello", "goodbye",
]  # fmt: skip
HZ = {word: 300 + 100 * number for number, word in enumerate(WORDS)}
"""300 to 4200 Hz; the first thirty words pass a telephone line."""


def speak(words: str | Iterable[str], *, lead_ms: int = 100, tail_ms: int = 100, rate_hz: int = RATE_HZ) -> bytes:
    """PCM16 mono of words of the vocabulary, with silence before and after."""
    listed = words.split() if isinstance(words, str) else list(words)
    at = np.arange(rate_hz * WORD_MS // 1000) / rate_hz
    fade = np.minimum(1.0, np.minimum(at, at[::-1]) / 0.004)
    pieces = [np.zeros(rate_hz * lead_ms // 1000)]
    for word in listed:
        pieces += [9_000 * fade * np.sin(2 * np.pi * HZ[word] * at), np.zeros(rate_hz * GAP_MS // 1000)]
    pieces.append(np.zeros(rate_hz * tail_ms // 1000))
    return np.concatenate(pieces).astype("<i2").tobytes()


def hear(pcm: bytes, rate_hz: int = RATE_HZ) -> list[str]:
    """The words in PCM16 mono."""
    ear = Ear(rate_hz)
    ear.push(pcm)
    return ear.words


class Ear:
    """Hears words as they come. A word is heard before it is over."""

    def __init__(self, rate_hz: int = RATE_HZ) -> None:
        self.words: list[str] = []
        self.heard_bytes = 0
        """How much was pushed."""
        self.silent_ms = 0
        """Silence at the end of what was pushed."""
        self._samples = rate_hz * WINDOW_MS // 1000
        self._bins = np.array([HZ[word] * WINDOW_MS // 1000 for word in WORDS])
        self._rest = b""
        self._word = ""
        self._run = 0

    def push(self, pcm: bytes) -> None:
        """More audio, any length."""
        self.heard_bytes += len(pcm)
        data = self._rest + pcm
        whole = len(data) - len(data) % (2 * self._samples)
        self._rest = data[whole:]
        windows = np.frombuffer(data[:whole], "<i2").reshape(-1, self._samples).astype(float)
        rms = np.sqrt(np.mean(np.square(windows), axis=1))
        strength = np.abs(np.fft.rfft(windows)[:, self._bins]) * np.sqrt(2) / self._samples
        for loudness, tones in zip(rms, strength, strict=True):
            best = int(tones.argmax())
            self._window(WORDS[best] if loudness > QUIET and tones[best] > 0.7 * loudness else "", loudness > QUIET)

    def _window(self, word: str, loud: bool) -> None:
        self.silent_ms = 0 if loud else self.silent_ms + WINDOW_MS
        if word and word == self._word:
            self._run += 1
        elif loud and not word and self._word:
            return  # a window that lies half in a word
        else:
            self._word, self._run = word, 1 if word else 0
        if self._run == ENOUGH_WINDOWS:
            self.words.append(self._word)

    @property
    def text(self) -> str:
        """The words so far."""
        return " ".join(self.words)


class Script:
    """What a stand-in understands: `text` for whatever it hears, or, when that is None, the words that were spoken."""

    def __init__(self) -> None:
        self.text: str | None = None

    def of(self, ear: Ear) -> str:
        """What was understood of what this ear heard."""
        return ear.text if self.text is None else self.text

    def routes(self) -> list[web.RouteDef]:
        """`POST /__reply` with `{"text": "…"}`; null: listen again."""

        async def change(request: web.Request) -> web.Response:
            body: dict[str, Any] = await request.json()
            self.text = body["text"]
            return web.json_response({"text": self.text})

        return [web.post("/__reply", change)]
