"""Text to speech on this machine: hibari, an English voice that speaks a hundred times faster than it is heard.

The same text always gives the same samples, so a takeover goes on in mid-sentence without a seam.
"""

import asyncio
import re
import unicodedata
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from meshag.audio import from_floats
from meshag.connectors.contracts import PATIENT, Availability, Options, TtsConnector, TtsVoice
from meshag.errors import ConnectorError, ModelError
from meshag.models.engines import Engines

RATE_HZ = 24_000

FIRST_BYTES = RATE_HZ * 40 // 1000 * 2
"""The first piece is 40 ms, so that the caller hears it soon."""

PIECE_BYTES = RATE_HZ * 200 // 1000 * 2
"""The others are 200 ms."""

LONGEST_CHARS = 300
"""A sentence longer than this is spoken in parts."""

_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_MARKUP = re.compile(r"[*_`#~|<>{}\[\]\\^]+")
_DIGITS = re.compile(r"\d{13,}")
_PLAIN = re.compile(r"[^A-Za-z' ]+")
_LIST = re.compile(r"^\s*[-+•]\s+", re.MULTILINE)


class LocalTtsOptions(Options):
    """What a session may ask of the local voice."""

    voice: Literal["heart"] = "heart"
    """The one voice that comes with hibari: US English, female."""

    speed: float = Field(1.0, ge=0.5, le=2.0)
    """1: the voice's own pace; 2: twice as fast."""


class LocalTts(TtsConnector):
    """Hibari in this process."""

    name = "local"
    shared = False
    options = LocalTtsOptions
    deadlines = PATIENT

    def __init__(self) -> None:
        self._engines = Engines(_Engine)

    def availability(self) -> Availability:
        """Whether hibari, which brings its voice along, is installed."""
        if not find_spec("hibari") or not find_spec("onnxruntime"):
            return Availability(False, "hibari-tts is not installed: pip install 'meshag[local]'")
        return Availability(True, "Hibari, voice heart (US English)")

    async def warm(self) -> None:
        """Load the voice and let it say a word."""
        async for _ in (await self.open(LocalTtsOptions())).speak("Hello."):
            pass

    async def open(self, options: Options) -> TtsVoice:
        """A voice for one session. Raises ModelError when hibari is not installed."""
        assert isinstance(options, LocalTtsOptions)
        return _Voice(await self._engines.get(Path(options.voice)), options)

    async def aclose(self) -> None:
        """Stop the voices' threads."""
        for engine in self._engines.clear():
            engine.close()


class _Engine:
    """The loaded voice and the one thread that it runs in. A sentence is a job, so sessions take turns."""

    def __init__(self, voice: Path) -> None:
        try:
            import hibari
        except ImportError as error:
            raise ModelError("hibari-tts is not installed: run `pip install 'meshag[local]'`") from error
        try:
            self._hibari: Any = hibari.Hibari(voice=voice.name, threads=1)
        except Exception as error:  # whatever it is that it finds wrong with its files
            raise ModelError(
                "the voice cannot be loaded: run `pip install --force-reinstall hibari-tts==0.2.1`"
            ) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tts")

    async def speak(self, sentence: str, speed: float) -> bytes:
        """PCM16 of one sentence; empty when there is nothing to speak in it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._speak, sentence, speed)
        except Exception as error:  # hibari and onnxruntime have no common base of errors
            raise ConnectorError(f"the local voice failed: {type(error).__name__}") from error

    def _speak(self, sentence: str, speed: float) -> bytes:
        try:
            said = self._hibari.phonemize(sentence)
        except (ValueError, LookupError):  # hibari stumbles over odd numbers: then without them
            said = self._hibari.phonemize(_PLAIN.sub(" ", sentence))
        spoken = []
        for phonemes in said:
            # The breath in the voice is noise; its seed comes from what is said.
            noise = np.random.default_rng(zlib.crc32(phonemes.encode()))
            spoken.append(from_floats(self._hibari.from_ids(self._hibari.ids(phonemes), speed, noise)))
        return b"".join(spoken)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Voice(TtsVoice):
    """One session's voice."""

    rate_hz = RATE_HZ

    def __init__(self, engine: _Engine, options: LocalTtsOptions) -> None:
        self._engine = engine
        self._speed = options.speed

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        size = FIRST_BYTES
        for sentence in sentences(speakable(text)):
            pcm = await self._engine.speak(sentence, self._speed)
            at = 0
            while at < len(pcm):
                yield pcm[at : at + size]
                at += size
                size = PIECE_BYTES


def speakable(text: str) -> str:
    """What of `text` a voice can say: no markup, no emoji, no control characters."""
    text = unicodedata.normalize("NFKC", text)
    text = _LIST.sub("", _TAG.sub(" ", _LINK.sub(r"\1", text)))
    text = "".join(map(_sayable, _MARKUP.sub(" ", text)))
    return _DIGITS.sub(lambda run: " ".join(run[0]), text)


def _sayable(char: str) -> str:
    if char.isascii():
        return char if char.isprintable() or char == "\n" else " "
    if char.isnumeric():
        return str(unicodedata.digit(char, "")) or " "
    return char if char in "£€°" or unicodedata.category(char)[0] in "LMPZ" else " "


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text` that have something to say, none too long."""
    for sentence in re.split(r"(?<=[.!?…])\s+|\n+", text):
        rest = sentence.strip()
        while rest:
            at = len(rest)
            if at > LONGEST_CHARS:
                at = max(rest.rfind(mark, 0, LONGEST_CHARS) for mark in (", ", "; ", ": ", " - ")) + 1
                at = at or rest.rfind(" ", 0, LONGEST_CHARS) + 1 or LONGEST_CHARS
            part, rest = rest[:at].strip(), rest[at:].strip()
            if any(char.isalnum() for char in part):
                yield part
