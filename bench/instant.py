"""Providers that answer at once, so that what is measured is MeshAG alone. Also what the tests' meshes speak through.

Speech is marked inside the audio, as a provider with endpointing of its own would find it: a frame that begins with
START opens an utterance, one that begins with END closes it; the two bytes after END number the question.
"""

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from typing import ClassVar

from meshag.connectors.contracts import (
    Heard,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Options,
    ReplyDone,
    SttConnector,
    SttStream,
    TextDelta,
    TtsConnector,
    TtsVoice,
)

START, END = struct.pack("<h", 0x7A01), struct.pack("<h", 0x7A02)
FRAME_BYTES = 640
SILENCE = bytes(FRAME_BYTES)
SPEECH = b"\x10\x00" * (FRAME_BYTES // 2)

SENTENCES = (
    "Sure thing I can look that up for you now. ",
    "Your order left our warehouse this morning and is moving. ",
    "It should reach your front door by tomorrow around noon.",
)
TOKENS = [word + " " for sentence in SENTENCES for word in sentence.split()]
"""30 tokens in 3 sentences."""

VOICE_HZ = 24_000
PIECE = b"".join(struct.pack("<h", int(9000 * math.sin(2 * math.pi * 200 * i / VOICE_HZ))) for i in range(480))
"""20 ms of a 200 Hz tone."""

CONNECTORS = (
    "stt:instant=bench.instant:InstantStt,llm:instant=bench.instant:InstantLlm,tts:instant=bench.instant:InstantTts"
)
"""For MESHAG_CONNECTORS."""


def speech_frame(marker: bytes | None = None, number: int = 0) -> bytes:
    """20 ms of "speech"."""
    head = (marker or SPEECH[:2]) + struct.pack("<h", number & 0x7FFF)
    return head + SPEECH[4:]


def config(**more: object) -> dict[str, object]:
    """A session on these providers. `more`: further parts of the session's `config`."""
    stage = {"primary": "instant"}
    return {"connectors": {"stt": stage, "llm": stage, "tts": stage}, "turns": {"vad": "provider"}, **more}


class InstantOptions(Options):
    """How the stand-ins behave."""

    delay_ms: int = 0
    """Before each item."""

    fail: bool = False
    """Break at once."""

    reply: str = ""
    """The language model says this instead of the three sentences; `{system}` in it is the system prompt."""


class InstantStream(SttStream):
    """Finds the markers."""

    endpointing = True

    def __init__(self) -> None:
        self._heard: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._fed_bytes = 0

    def feed(self, pcm: bytes) -> None:
        self._fed_bytes += len(pcm)
        for at in range(0, len(pcm), FRAME_BYTES):
            mark = pcm[at : at + 2]
            if mark == START:
                self._heard.put_nowait(Heard("Where", final=False))
            elif mark == END:
                number = struct.unpack("<h", pcm[at + 2 : at + 4])[0]
                self._heard.put_nowait(Heard(f"Where is my order number {number}?", final=True, ended=True))

    def finish(self) -> None:
        """Where MeshAG finds the turns: how much was fed, in words."""
        self._heard.put_nowait(Heard(f"{self._fed_bytes // 32} milliseconds of speech.", final=True))
        self._fed_bytes = 0

    def reset(self) -> None:
        self._fed_bytes = 0

    async def heard(self) -> AsyncIterator[Heard]:
        while (heard := await self._heard.get()) is not None:
            yield heard

    async def aclose(self) -> None:
        self._heard.put_nowait(None)


class InstantStt(SttConnector):
    """Hears the markers."""

    name: ClassVar[str] = "instant"
    options: ClassVar[type[Options]] = InstantOptions

    async def open(self, options: Options) -> SttStream:
        return InstantStream()


class InstantLlm(LlmConnector):
    """Answers with the three sentences, or goes on with them after what was said."""

    name: ClassVar[str] = "instant"
    options: ClassVar[type[Options]] = InstantOptions

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        options = request.options
        assert isinstance(options, InstantOptions)
        text = options.reply.replace("{system}", request.system)
        tokens = [word + " " for word in text.split()] or TOKENS
        skip = len(request.said.split())
        for token in tokens[skip:]:
            if options.delay_ms:
                await asyncio.sleep(options.delay_ms / 1000)
            yield TextDelta(token)
        yield ReplyDone("stop", output_tokens=len(tokens) - skip)


class InstantVoice(TtsVoice):
    """A second of tone for each text."""

    rate_hz = VOICE_HZ

    def __init__(self, delay_ms: int) -> None:
        self._delay_ms = delay_ms

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        yield PIECE
        for _ in range(7):
            if self._delay_ms:
                await asyncio.sleep(self._delay_ms / 1000)
            yield PIECE * 7


class InstantTts(TtsConnector):
    """Speaks the tone."""

    name: ClassVar[str] = "instant"
    options: ClassVar[type[Options]] = InstantOptions

    async def open(self, options: Options) -> TtsVoice:
        assert isinstance(options, InstantOptions)
        return InstantVoice(options.delay_ms)
