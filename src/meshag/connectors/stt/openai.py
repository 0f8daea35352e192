"""Speech to text by OpenAI: an utterance as a file, or the realtime socket.

File: the utterance is sent when it is over; gpt-4o models answer word by word. Socket: `openai_realtime`.
"""

import io
import struct
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, Literal

import aiohttp
from pydantic import Field, StringConstraints, field_validator, model_validator

from meshag.audio import RATE_HZ
from meshag.connectors.contracts import Availability, Deadlines, Heard, Options, SttConnector, SttStream
from meshag.connectors.http import Http, failures, host_of
from meshag.connectors.openai_files import FileStream, whole, written
from meshag.connectors.openai_realtime import LIVE_MODELS, SOCKET_RATE_HZ, RealtimeStream
from meshag.connectors.stt_socket import dial
from meshag.settings import Settings

PROBE_BYTES = RATE_HZ * 2 // 5
"""0.2 s."""

KEYWORD_MODELS = ("gpt-transcribe", "gpt-live-transcribe")


class OpenAiSttOptions(Options):
    """What a session may ask of OpenAI's recognisers."""

    model: str = Field("whisper-1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")
    """whisper-1, gpt-4o-transcribe, gpt-4o-mini-transcribe, gpt-transcribe, gpt-live-transcribe … Default whisper-1."""

    language: str = Field("auto", pattern=r"^(auto|[a-z]{2})$")
    """`auto`, or the ISO 639-1 code of the language spoken: `en`. Default auto."""

    prompt: str = Field("", max_length=2_000)
    """Words to expect, or a text that this one goes on from. Up to 2,000 characters. Default none."""

    keywords: list[Annotated[str, StringConstraints(min_length=1, max_length=100)]] = Field([], max_length=100)
    """Names and terms to expect; for gpt-transcribe and gpt-live-transcribe. Up to 100. Default none."""

    response_format: Literal["json", "verbose_json", "text"] = "json"
    """How OpenAI answers; the transcript is the same. Models named gpt-… know json only. Default json."""

    temperature: float = Field(0.0, ge=0.0, le=1.0)
    """0: the most likely words; up to 1. Default 0."""

    realtime: bool | None = None
    """True: over the realtime socket, false: as files. Default: the socket for the models that exist only there."""

    noise_reduction: Literal["near_field", "far_field"] | None = None
    """On the realtime socket: near_field for headsets, far_field for microphones in a room. Default none."""

    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None
    """How long gpt-realtime-whisper waits before it writes: later is more accurate. Default: OpenAI's."""

    @field_validator("response_format", mode="before")
    @classmethod
    def _no_file_format(cls, value: object) -> object:
        if value in ("srt", "vtt", "diarized_json"):
            raise ValueError(f"{value} is for files, not for calls: use json, verbose_json or text")
        return value

    @model_validator(mode="after")
    def _fits_the_model(self) -> "OpenAiSttOptions":
        if self.model.startswith("gpt-") and self.response_format != "json":
            raise ValueError(f"response_format: {self.model} answers in json only")
        if self.model in LIVE_MODELS and self.realtime is False:
            raise ValueError(f"realtime: {self.model} exists only on the realtime socket")
        if self.keywords and self.model not in KEYWORD_MODELS:
            raise ValueError(f"keywords: only {' and '.join(KEYWORD_MODELS)} take them; use prompt")
        if self.prompt and self.model == "gpt-realtime-whisper":
            raise ValueError("prompt: gpt-realtime-whisper takes none")
        if self.delay and self.model != "gpt-realtime-whisper":
            raise ValueError("delay: only gpt-realtime-whisper knows it")
        if self.noise_reduction and not self.on_socket:
            raise ValueError("noise_reduction: only on the realtime socket")
        return self

    @property
    def on_socket(self) -> bool:
        """Whether the realtime socket is used."""
        return self.model in LIVE_MODELS if self.realtime is None else self.realtime


class OpenAiStt(SttConnector):
    """OpenAI's recognisers. The connections are shared by all sessions and kept open between their turns."""

    name = "openai"
    options = OpenAiSttOptions
    deadlines = Deadlines(first_ms=3_000, between_ms=2_000)

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.openai_api_key.get_secret_value()
        self._base_url = settings.openai_base_url.rstrip("/")
        self._http = Http("openai")

    def availability(self) -> Availability:
        """Whether there is a key."""
        if not self._key:
            return Availability(False, "set OPENAI_API_KEY")
        if not host_of(self._base_url):
            return Availability(False, "OPENAI_BASE_URL is no http(s) address: https://api.openai.com/v1")
        return Availability(True, "whisper-1, gpt-4o-transcribe and others")

    async def open(self, options: Options) -> SttStream:
        """A stream for one session. The socket is open and its settings are accepted; files need no connection yet."""
        assert isinstance(options, OpenAiSttOptions)
        if not options.on_socket:
            return FileStream(lambda pcm: self.transcribe(pcm, options))
        async with AsyncExitStack() as stack:
            with failures("openai"):
                url = f"{self._base_url}/realtime?intent=transcription"
                socket = await dial(self._http, url, self._headers, stack)
                stream = RealtimeStream(socket, live=options.model in LIVE_MODELS)
                await stream.begin(_session(options))
                stream.run(stack.pop_all())
        return stream

    async def probe(self, options: Options) -> None:
        """Have a fifth of a second of silence transcribed."""
        assert isinstance(options, OpenAiSttOptions)
        stream = await self.open(options)
        try:
            stream.feed(bytes(PROBE_BYTES))
            stream.finish()
            async for heard in stream.heard():
                if heard.final:
                    return
        finally:
            await stream.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    async def transcribe(self, pcm: bytes, options: OpenAiSttOptions) -> AsyncGenerator[Heard, None]:
        """What is said in `pcm`: interims where the model gives any, then the final. Raises ConnectorError."""
        url = f"{self._base_url}/audio/transcriptions"
        async with self._http.request("POST", url, headers=self._headers, data=lambda: _form(pcm, options)) as answer:
            if not streams(options):
                yield Heard(await whole(answer, options.response_format), final=True)
                return
            async with aclosing(written(answer)) as found:
                async for heard in found:
                    yield heard


def streams(options: OpenAiSttOptions) -> bool:
    """Whether the model answers word by word."""
    return options.model.startswith("gpt-")


def _form(pcm: bytes, options: OpenAiSttOptions) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(wav(pcm)), filename="speech.wav", content_type="audio/wav")
    form.add_field("model", options.model)
    form.add_field("response_format", options.response_format)
    form.add_field("temperature", f"{options.temperature:g}")
    if options.language != "auto":
        form.add_field("language", options.language)
    if options.prompt:
        form.add_field("prompt", options.prompt)
    for keyword in options.keywords:
        form.add_field("keywords[]", keyword)
    if streams(options):
        form.add_field("stream", "true")
    return form


def wav(pcm: bytes) -> bytes:
    """A WAV file of PCM16 mono 16 kHz."""
    size = len(pcm)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ, RATE_HZ * 2, 2, 16, b"data", size),
    ) + pcm  # fmt: skip


def _session(options: OpenAiSttOptions) -> dict[str, Any]:
    """The realtime session: no turn detection, because each `finish` commits."""
    transcription: dict[str, Any] = {"model": options.model}
    if options.language != "auto":
        transcription["language"] = options.language
    for field in ("prompt", "keywords", "delay"):
        if value := getattr(options, field):
            transcription[field] = value
    heard: dict[str, Any] = {
        "format": {"type": "audio/pcm", "rate": SOCKET_RATE_HZ},
        "transcription": transcription,
        "turn_detection": None,
    }
    if options.noise_reduction:
        heard["noise_reduction"] = {"type": options.noise_reduction}
    return {"type": "transcription", "audio": {"input": heard}}
