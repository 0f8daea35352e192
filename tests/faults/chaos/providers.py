"""Providers whose answers can be told apart: every 20 ms of an answer say whose it is, which one, and where in it.

A question's number is `caller * 1000 + question`. Its answer has three parts, each a sentence of its own.
"""

import asyncio
import re
import struct
from collections.abc import AsyncIterator
from typing import Any, ClassVar, NamedTuple

from bench import instant
from bench.instant import VOICE_HZ
from meshag.connectors.contracts import (
    Heard,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Options,
    ReplyDone,
    SttStream,
    TextDelta,
    TtsConnector,
    TtsVoice,
)

PARTS = 3
PIECES = 25
"""Of 20 ms, in each part of an answer."""

PIECE_BYTES = VOICE_HZ // 50 * 2
_STAMP = struct.Struct("<hhhhhhhh")
_MAGIC = 0x5C5C
_REPEATS = PIECE_BYTES // _STAMP.size

_ASKED = re.compile(r"number (\d+)")
_SPOKEN = re.compile(r"Answer (\d+) part (\d+)\b")

CONNECTORS = ",".join(
    f"{stage}:chaos=faults.chaos.{module}:{name}"
    for stage, module, name in (
        ("stt", "providers", "ChaosStt"),
        ("llm", "providers", "ChaosLlm"),
        ("tts", "providers", "ChaosTts"),
        ("stt", "mutants", "MutantStt"),
        ("llm", "mutants", "MutantLlm"),
        ("tts", "mutants", "MutantTts"),
        ("transport", "mutants", "MutantTransport"),
    )
).replace("chaos=faults.chaos.mutants", "mutant=faults.chaos.mutants")
"""For MESHAG_CONNECTORS."""


class Piece(NamedTuple):
    """20 ms of an answer; `number` 0: of something that only bridges a wait."""

    number: int
    part: int
    piece: int


def question(number: int) -> str:
    """What the recogniser hears of question `number`."""
    return f"Where is my order number {number}?"


def parts(number: int) -> list[str]:
    """The answer to question `number`, sentence by sentence."""
    return [f"Answer {number} part {part} of the whole is this. " for part in range(PARTS)]


def answer(number: int) -> str:
    """The whole answer, as the model says it."""
    return "".join(parts(number))


def audio(number: int, part: int, piece: int) -> bytes:
    """20 ms of an answer."""
    return _STAMP.pack(_MAGIC, number, part, piece, 0, 77, -77, 1) * _REPEATS


def read_piece(pcm: bytes) -> Piece | None:
    """What 20 ms of audio are; None: nothing that a voice of ours has said."""
    stamp = pcm[: _STAMP.size]
    if len(pcm) != PIECE_BYTES or stamp * _REPEATS != pcm:
        return None
    magic, number, part, piece, *_ = _STAMP.unpack(stamp)
    return Piece(number, part, piece) if magic == _MAGIC else None


def config(**delays_ms: int) -> dict[str, Any]:
    """A session on these providers. `llm`, `tts`: milliseconds before each of their items."""
    connectors = {
        stage: {"primary": "chaos", "config": {"chaos": {"delay_ms": delays_ms.get(stage, 0)}}}
        for stage in ("llm", "tts")
    }
    return {"connectors": {"stt": {"primary": "chaos"}, **connectors}, "turns": {"vad": "provider"}}


def speech(number: int, frames: int) -> list[bytes]:
    """Question `number`, spoken: so many frames of 20 ms between its beginning and its end."""
    end = instant.speech_frame(instant.END, number)
    counted = end[:4] + struct.pack("<h", frames) + end[6:]
    return [instant.speech_frame(instant.START), *[instant.speech_frame()] * frames, counted]


class ChaosStream(instant.InstantStream):
    """Understands a question of which it has heard every frame once, from its beginning to its end."""

    _frames: int | None = None

    def feed(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), instant.FRAME_BYTES):
            mark = pcm[at : at + 2]
            if mark == instant.START:
                self._frames = 0
                self._heard.put_nowait(Heard("Where", final=False))
            elif mark == instant.END:
                number, frames = struct.unpack("<hh", pcm[at + 2 : at + 6])
                heard, self._frames = self._frames, None
                text = question(number) if heard == frames else f"Of {frames} frames of {number}: {heard}"
                self._heard.put_nowait(Heard(text, final=True, ended=True))
            elif self._frames is not None and mark != instant.SILENCE[:2]:
                self._frames += 1

    def finish(self) -> None:
        """The turns are found in the audio."""


class ChaosStt(instant.InstantStt):
    """Hears the marks in the callers' frames."""

    name: ClassVar[str] = "chaos"

    async def open(self, options: Options) -> SttStream:
        return ChaosStream()


class ChaosOptions(Options):
    """How slow the stand-ins are."""

    delay_ms: int = 0
    """Before each item."""


class ChaosLlm(LlmConnector):
    """Answers the last question, or goes on after what was said of the answer."""

    name: ClassVar[str] = "chaos"
    options: ClassVar[type[Options]] = ChaosOptions

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        options = request.options
        assert isinstance(options, ChaosOptions)
        number = int((_ASKED.findall(request.messages[-1].text) or ["0"])[-1])
        words = [word + " " for word in answer(number).split()]
        for word in words[len(request.said.split()) :]:
            if options.delay_ms:
                await asyncio.sleep(options.delay_ms / 1000)
            yield TextDelta(word)
        yield ReplyDone("stop", output_tokens=len(words))


class ChaosVoice(TtsVoice):
    """Half a second for each part, four pieces at a time."""

    rate_hz = VOICE_HZ

    def __init__(self, delay_ms: int) -> None:
        self._delay_ms = delay_ms

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        found = _SPOKEN.search(text)
        number, part = (int(found[1]), int(found[2])) if found else (0, 0)
        for first in range(0, PIECES, 4):
            if self._delay_ms:
                await asyncio.sleep(self._delay_ms / 1000)
            yield b"".join(audio(number, part, piece) for piece in range(first, min(first + 4, PIECES)))


class ChaosTts(TtsConnector):
    """Speaks the stamps."""

    name: ClassVar[str] = "chaos"
    options: ClassVar[type[Options]] = ChaosOptions

    async def open(self, options: Options) -> TtsVoice:
        assert isinstance(options, ChaosOptions)
        return ChaosVoice(options.delay_ms)
