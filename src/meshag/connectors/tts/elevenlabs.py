"""Text to speech by ElevenLabs: over a WebSocket that stays open, or a request for every sentence."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import quote, urlencode
from weakref import WeakSet

import msgspec
from pydantic import Field

from meshag import clock
from meshag.connectors.contracts import Availability, Deadlines, Options, TtsConnector, TtsVoice
from meshag.connectors.elevenlabs_socket import HungUp, Line
from meshag.connectors.http import Http, host_of
from meshag.connectors.pieces import Pieces, sayable
from meshag.errors import ConnectorError, ProviderGarbage, ProviderRejected, ProviderTimeout
from meshag.settings import Settings

RATE_HZ = 24_000

IDLE_S = 180
"""A socket on which nothing is said is kept by the vendor for so long: the most that it offers."""

NAMES_S = 600.0
"""The account's list of voices is asked for again after this time."""

NAMES_WAIT_S = 1.0
"""How long that may take."""

NAMES_BYTES = 8 * 1024 * 1024
"""How long that list may be."""

KNOWN = {"rachel": "21m00Tcm4TlvDq8ikWAM"}
"""Voices that every account has, should the list not be had: a key may be allowed to speak, but not to list voices."""

_ID = re.compile(r"[A-Za-z0-9]{20}")


class ElevenLabsOptions(Options):
    """What a session may ask of ElevenLabs. What is left out is as the voice's owner has set it."""

    model: str = Field("eleven_flash_v2_5", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """`eleven_flash_v2_5` begins soonest; `eleven_multilingual_v2` and `eleven_v3` sound best and begin later."""

    voice: str = Field("Rachel", min_length=1, max_length=100)
    """A voice of the account: its name, or its id (20 letters and digits)."""

    stability: float | None = Field(None, ge=0.0, le=1.0)
    """0: lively; 1: even."""

    similarity_boost: float | None = Field(None, ge=0.0, le=1.0)
    """How close to the original voice, 0 to 1."""

    style: float | None = Field(None, ge=0.0, le=1.0)
    """How much of the original's style is laid on, 0 to 1. More begins later."""

    use_speaker_boost: bool | None = None
    """Closer still to the original. Begins later."""

    speed: float | None = Field(None, ge=0.7, le=1.2)
    """1: the voice's own pace."""

    language: str = Field("auto", pattern=r"^(auto|[a-z]{2,3})$")
    """ISO 639 code of the text's language (`en`). auto: as the text reads."""

    seed: int = Field(1, ge=0, le=4_294_967_295)
    """The same text and seed sound the same, as far as the model can, so that a takeover leaves no seam."""

    transport: Literal["websocket", "http"] = "websocket"
    """`websocket`: one connection for the session. `http`: a request for each sentence; always so with `eleven_v3`."""

    @property
    def over_http(self) -> bool:
        """The WebSocket offers no model of the third generation."""
        return self.transport == "http" or self.model.startswith("eleven_v3")

    @property
    def voice_settings(self) -> dict[str, Any]:
        """Those that are asked for, as they go on the wire."""
        return self.model_dump(
            include={"stability", "similarity_boost", "style", "use_speaker_boost", "speed"}, exclude_none=True
        )


class ElevenLabsTts(TtsConnector):
    """ElevenLabs."""

    name = "elevenlabs"
    options = ElevenLabsOptions
    deadlines = Deadlines(first_ms=1_200, between_ms=1_000)  # flash answers within 300 ms, multilingual v2 within 900

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.elevenlabs_api_key.get_secret_value()
        self._base = settings.elevenlabs_base_url.rstrip("/")
        self._http = Http(self.name)
        self._names = _Names(self._http, f"{self._base}/v1/voices", self._headers)
        self._lines: WeakSet[Line] = WeakSet()

    @property
    def _headers(self) -> dict[str, str]:
        return {"xi-api-key": self._key}

    def availability(self) -> Availability:
        """Whether there is a key."""
        if not self._key:
            return Availability(False, "set ELEVENLABS_API_KEY")
        if not host_of(self._base):
            return Availability(False, "ELEVENLABS_BASE_URL is not an http(s) address")
        return Availability(True, self._base)

    async def probe(self, options: Options) -> None:
        """Say the beginning of "ok"."""
        voice = await self.open(options)
        try:
            async with aclosing(voice.speak("ok")) as speaking:  # type: ignore[type-var]
                async for _ in speaking:
                    return
            raise ProviderGarbage("elevenlabs: no audio")
        finally:
            await voice.aclose()

    async def open(self, options: Options) -> TtsVoice:
        """A voice, its socket open. Raises ProviderRejected `voice_unknown` when the account has none of that name."""
        assert isinstance(options, ElevenLabsOptions)
        voice = f"{self._base}/v1/text-to-speech/{quote(await self._names.id_of(options.voice), safe='')}"
        if options.over_http:
            return _HttpVoice(self._http, voice, self._headers, options)
        speaker = _SocketVoice(self._http, voice, self._headers, options, self._lines)
        await speaker.dial()
        return speaker

    async def aclose(self) -> None:
        """Close every socket."""
        self._names.forget()
        await asyncio.gather(*(line.aclose() for line in list(self._lines)))
        await self._http.aclose()


class _HttpVoice(TtsVoice):
    """A request for each sentence."""

    rate_hz = RATE_HZ

    def __init__(self, http: Http, voice: str, headers: Mapping[str, str], options: ElevenLabsOptions) -> None:
        self._http = http
        self._url = f"{voice}/stream?output_format=pcm_{RATE_HZ}"
        self._headers = headers
        self._body: dict[str, Any] = {"model_id": options.model, "seed": options.seed}
        if options.voice_settings:
            self._body["voice_settings"] = options.voice_settings
        if options.language != "auto":
            self._body["language_code"] = options.language

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        if not (text := sayable(text)):
            return
        pieces = Pieces(RATE_HZ)
        body = {"text": text, **self._body}
        async with self._http.request("POST", self._url, headers=self._headers, json=body) as answer:
            if not answer.content_type.startswith(("audio/", "application/octet-stream")):
                raise ProviderGarbage("elevenlabs: no audio")
            async for audio in answer.content.iter_any():
                for piece in pieces.push(audio):
                    yield piece
        for piece in pieces.flush():
            yield piece


class _SocketVoice(TtsVoice):
    """A context for each sentence, on a socket that is opened beforehand and again when it was closed as idle."""

    rate_hz = RATE_HZ

    def __init__(
        self, http: Http, voice: str, headers: Mapping[str, str], options: ElevenLabsOptions, lines: "WeakSet[Line]"
    ) -> None:
        query = {
            "model_id": options.model,
            "output_format": f"pcm_{RATE_HZ}",
            "auto_mode": "true",  # whole sentences are sent: none is held back to wait for more
            "inactivity_timeout": str(IDLE_S),
            "seed": str(options.seed),
            **({} if options.language == "auto" else {"language_code": options.language}),
        }
        self._http = http
        self._url = f"ws{voice.removeprefix('http')}/multi-stream-input?{urlencode(query)}"
        self._headers = headers
        self._settings = options.voice_settings
        self._lines = lines
        self._line: Line | None = None

    async def dial(self) -> Line:
        """Open the socket, in place of the one that there was."""
        if self._line is not None:
            self._line.cut()
        line = self._line = Line(self._http)
        self._lines.add(line)
        await line.dial(self._url, self._headers)
        return line

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        if not (text := sayable(text)):
            return
        pieces = Pieces(RATE_HZ)
        line = self._line
        while True:
            new = line is None or not line.usable
            if line is None or new:
                line = await self.dial()
            try:
                async with aclosing(line.say(text, self._settings)) as audio:
                    async for pcm in audio:
                        for piece in pieces.push(pcm):
                            yield piece
                break
            except HungUp:
                if new or pieces.begun:
                    raise
                line = None  # it was closed between two sentences, and nobody has heard anything of this one
        for piece in pieces.flush():
            yield piece

    async def aclose(self) -> None:
        if self._line is not None:
            await self._line.aclose()


class _Names:
    """The account's voices by name: asked for at most every ten minutes, and once for all who wait."""

    def __init__(self, http: Http, url: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._url = url
        self._headers = headers
        self._ids: dict[str, str] = {}
        self._until_s = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def id_of(self, voice: str) -> str:
        """The id of the voice that is called so, in upper or lower case. Raises ConnectorError."""
        if _ID.fullmatch(voice):
            return voice
        name = voice.casefold()
        try:
            if clock.monotonic_s() >= self._until_s:
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask())
                await asyncio.shield(self._asking)
        except ConnectorError:
            if name not in KNOWN:
                raise
        found = self._ids.get(name) or KNOWN.get(name)
        if found is None:
            raise ProviderRejected("elevenlabs: the account has no voice of that name", code="voice_unknown")
        return found

    def forget(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        body = bytearray()
        try:
            async with (
                asyncio.timeout(NAMES_WAIT_S),
                self._http.request("GET", self._url, headers=self._headers) as answer,
            ):
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > NAMES_BYTES:
                        raise ProviderGarbage("elevenlabs: an endless list of voices")
        except TimeoutError:
            raise ProviderTimeout("elevenlabs: no list of voices") from None
        try:
            voices = msgspec.json.decode(body, type=_VoiceList).voices
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ProviderGarbage(f"elevenlabs: voices: {type(error).__name__}") from None
        short = {voice.name.partition(" - ")[0].casefold(): voice.voice_id for voice in reversed(voices)}
        self._ids = short | {voice.name.casefold(): voice.voice_id for voice in reversed(voices)}
        self._until_s = clock.monotonic_s() + NAMES_S


class _Voice(msgspec.Struct):
    voice_id: str
    name: str = ""
    """May tell more than the name: `Roger - Laid-back, casual`."""


class _VoiceList(msgspec.Struct):
    voices: list[_Voice]
