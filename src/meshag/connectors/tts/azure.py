"""Text to speech by Azure: a request for every sentence, the audio as it is made."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from xml.sax.saxutils import escape

from pydantic import Field

from meshag.connectors.contracts import Availability, Deadlines, Options, TtsConnector, TtsVoice
from meshag.connectors.http import Http, host_of
from meshag.connectors.pieces import Pieces, sayable
from meshag.errors import ProviderGarbage
from meshag.settings import Settings

RATE_HZ = 24_000

_QUOTES = {"'": "&apos;", '"': "&quot;"}


class AzureOptions(Options):
    """What a session may ask of Azure."""

    voice: str = Field("en-US-JennyNeural", pattern=r"^[A-Za-z]{2,3}-[A-Za-z0-9]{2,10}-[A-Za-z0-9:-]{1,80}$")
    """The short name of a voice."""

    language: str = Field("", pattern=r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{2,10}){0,2})?$")
    """The language of the text (`en-US`). Default: the voice's own."""

    rate: int = Field(0, ge=-50, le=100)
    """Faster or slower than the voice's own pace, percent."""

    pitch: int = Field(0, ge=-50, le=50)
    """Higher or lower than the voice's own, percent."""

    style: str = Field("", pattern=r"^[A-Za-z-]{0,40}$")
    """A speaking style that the voice offers (`cheerful`). Default: none."""


class AzureTts(TtsConnector):
    """Azure AI Speech."""

    name = "azure"
    options = AzureOptions
    deadlines = Deadlines(first_ms=800, between_ms=1_000)

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.azure_speech_key.get_secret_value()
        self._region = settings.azure_speech_region
        own = f"https://{self._region}.tts.speech.microsoft.com" if self._region else ""
        self._base = (settings.azure_speech_base_url or own).rstrip("/")
        self._http = Http(self.name)

    def availability(self) -> Availability:
        """Whether there is a key, and a region or another address."""
        if not self._key:
            return Availability(False, "set AZURE_SPEECH_KEY")
        if not self._base:
            return Availability(False, "set AZURE_SPEECH_REGION")
        if not host_of(self._base):
            return Availability(False, "AZURE_SPEECH_BASE_URL is not an http(s) address")
        return Availability(True, self._base)

    async def probe(self, options: Options) -> None:
        """Say the beginning of "ok"."""
        async with aclosing((await self.open(options)).speak("ok")) as speaking:  # type: ignore[type-var]
            async for _ in speaking:
                return
        raise ProviderGarbage("azure: no audio")

    async def open(self, options: Options) -> TtsVoice:
        """A voice for one session. Connects when it speaks."""
        assert isinstance(options, AzureOptions)
        return _Voice(self._http, f"{self._base}/cognitiveservices/v1", self._key, options)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()


class _Voice(TtsVoice):
    """One session's voice."""

    rate_hz = RATE_HZ

    def __init__(self, http: Http, url: str, key: str, options: AzureOptions) -> None:
        self._http = http
        self._url = url
        self._headers = {
            "Ocp-Apim-Subscription-Key": key,
            "Content-Type": "application/ssml+xml",
            "X-Microsoft-OutputFormat": "raw-24khz-16bit-mono-pcm",
            "User-Agent": "meshag",
        }
        self._options = options

    async def speak(self, text: str) -> AsyncIterator[bytes]:
        if not (text := sayable(text)):
            return
        pieces = Pieces(RATE_HZ)
        body = ssml(text, self._options).encode()
        async with self._http.request("POST", self._url, headers=self._headers, data=body) as answer:
            if not answer.content_type.startswith("audio/"):
                raise ProviderGarbage("azure: no audio")
            async for audio in answer.content.iter_any():
                for piece in pieces.push(audio):
                    yield piece
        for piece in pieces.flush():
            yield piece


def ssml(text: str, options: AzureOptions) -> str:
    """The document to be spoken. Nothing in `text` is markup, whatever it looks like."""
    spoken = escape(text, _QUOTES)
    changes = {"rate": options.rate, "pitch": options.pitch}
    if any(changes.values()):
        how = " ".join(f"{name}='{percent:+d}%'" for name, percent in changes.items() if percent)
        spoken = f"<prosody {how}>{spoken}</prosody>"
    if options.style:
        spoken = f"<mstts:express-as style='{options.style}'>{spoken}</mstts:express-as>"
    language = options.language or "-".join(options.voice.split("-")[:2])
    return (
        "<speak version='1.0' xmlns='http://www.w3.org/2001/10/synthesis' xmlns:mstts='https://www.w3.org/2001/mstts' "
        f"xml:lang='{language}'><voice name='{options.voice}'>{spoken}</voice></speak>"
    )
