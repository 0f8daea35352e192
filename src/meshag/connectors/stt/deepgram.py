"""Speech to text by Deepgram: nova and Flux, over a WebSocket that stays open for the session."""

import re
from contextlib import AsyncExitStack
from typing import Annotated, Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from pydantic import Field, StringConstraints, model_validator

from meshag.audio import RATE_HZ
from meshag.connectors.contracts import Availability, Deadlines, Options, SttConnector, SttStream
from meshag.connectors.deepgram_flux import FluxStream
from meshag.connectors.deepgram_listen import stated
from meshag.connectors.deepgram_nova import NovaStream
from meshag.connectors.http import Http, failures, host_of
from meshag.connectors.stt_socket import closed, dial, received
from meshag.errors import ProviderGarbage
from meshag.settings import Settings

Term = Annotated[str, StringConstraints(min_length=1, max_length=100)]

NOVA_ONLY = ("endpointing", "utterance_end_ms", "smart_format", "punctuate")
FLUX_ONLY = ("eot_threshold", "eager_eot_threshold", "eot_timeout_ms")

PAUSE_MS = 300
"""nova: silence that ends a turn, where nothing else is asked for."""

UTTERANCE_END_MS = 1_000
"""nova: words that stay away for so long end a turn even where it is never silent."""

OWN_TURNS_TIMEOUT_MS = 60_000
"""Flux, when the turns are ours: the longest that it can wait before it ends one itself."""


class DeepgramSttOptions(Options):
    """What a session may ask of Deepgram."""

    model: str = Field("nova-3", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """nova-3, nova-2, …, flux-general-en, flux-general-multi. Default nova-3."""

    language: str | None = Field(None, pattern=r"^(multi|[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)$")
    """The language spoken: `en`, `de-CH`; nova: `multi` for several. Default: the model's own."""

    turns: bool | None = None
    """Deepgram finds the ends of turns (with `turns.vad: "provider"`). Default: true for Flux, else false."""

    keyterm: list[Term] = Field([], max_length=100)
    """Names and terms to expect; nova-3 and Flux. Up to 100. Default none."""

    numerals: bool = False
    """Numbers in digits. Default false."""

    profanity_filter: bool = False
    """Hide bad language. Default false."""

    mip_opt_out: bool = False
    """Keep the audio out of Deepgram's model improvement (it may cost more). Default false."""

    smart_format: bool = True
    """nova: write dates, amounts and addresses as one reads them. Default true."""

    punctuate: bool = True
    """nova: punctuation and capitals. Default true."""

    endpointing: int | None = Field(None, ge=10, le=10_000)
    """nova: silence that settles what was said, with `turns` the turn too, ms. Default: 300 with `turns`, else off."""

    utterance_end_ms: int | None = Field(None, ge=1_000, le=10_000)
    """nova, with `turns`: a turn ends when no word came for so long, ms. Default 1000."""

    eot_threshold: float | None = Field(None, ge=0.5, le=1.0)
    """Flux, with `turns`: how sure it must be that a turn is over. Default: Deepgram's (0.7)."""

    eager_eot_threshold: float | None = Field(None, ge=0.3, le=0.9)
    """Flux, with `turns`: how sure it must be to say that a turn is probably over. Default: it never says so."""

    eot_timeout_ms: int | None = Field(None, ge=500, le=60_000)
    """Flux, with `turns`: silence that ends a turn in any case, ms. Default: Deepgram's (5000)."""

    @model_validator(mode="after")
    def _fits_the_model(self) -> "DeepgramSttOptions":
        for name in NOVA_ONLY if self.is_flux else FLUX_ONLY:
            if name in self.model_fields_set and getattr(self, name) is not None:
                raise ValueError(f"{name}: {self.model} does not know it")
        for name in (*FLUX_ONLY, "utterance_end_ms"):
            if getattr(self, name) is not None and not self.finds_turns:
                raise ValueError(f"{name}: only with turns: true")
        if self.keyterm and not (self.is_flux or self.model.startswith("nova-3")):
            raise ValueError(f"keyterm: {self.model} does not know it; nova-3 and Flux do")
        if self.model == "flux-general-en" and not (self.language or "en").startswith("en"):
            raise ValueError("language: flux-general-en knows English only; use flux-general-multi")
        if self.is_flux and self.language == "multi":
            raise ValueError("language: use the model flux-general-multi, and leave it out")
        if (self.eager_eot_threshold or 0.0) > (self.eot_threshold or 0.9):
            raise ValueError("eager_eot_threshold: not above eot_threshold")
        return self

    @property
    def is_flux(self) -> bool:
        """Whether the model speaks /v2/listen."""
        return self.model.startswith("flux")

    @property
    def finds_turns(self) -> bool:
        """Whether Deepgram finds the ends of turns."""
        return self.is_flux if self.turns is None else self.turns


class DeepgramStt(SttConnector):
    """Deepgram. One socket for each session."""

    name = "deepgram"
    options = DeepgramSttOptions
    deadlines = Deadlines(between_ms=2_000)

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.deepgram_api_key.get_secret_value()
        self._base_url = settings.deepgram_base_url.rstrip("/")
        self._http = Http("deepgram")

    def availability(self) -> Availability:
        """Whether there is a key."""
        if not self._key:
            return Availability(False, "set DEEPGRAM_API_KEY")
        if not host_of(re.sub("^ws", "http", self._base_url)):
            return Availability(False, "DEEPGRAM_BASE_URL is no http(s) or ws(s) address: https://api.deepgram.com")
        return Availability(True, "nova-3, Flux and others")

    async def open(self, options: Options) -> SttStream:
        """A stream for one session; its socket is open."""
        assert isinstance(options, DeepgramSttOptions)
        async with AsyncExitStack() as stack:
            with failures("deepgram"):
                socket = await self._dial(options, stack)
                kind = FluxStream if options.is_flux else NovaStream
                stream = kind(socket, turns=options.finds_turns)
                stream.run(stack.pop_all())
        return stream

    async def _dial(self, options: DeepgramSttOptions, stack: AsyncExitStack) -> aiohttp.ClientWebSocketResponse:
        url = f"{self._base_url}{'/v2/listen' if options.is_flux else '/v1/listen'}?{urlencode(query(options))}"
        socket = await dial(self._http, url, {"Authorization": f"Token {self._key}"}, stack)
        if options.is_flux and (kind := _kind(await received("deepgram", socket))).type != "Connected":
            raise stated(kind.code) if kind.type == "Error" else ProviderGarbage("deepgram: no greeting")
        return socket

    async def probe(self, options: Options) -> None:
        """Send a fifth of a second of silence, close the stream and wait until Deepgram has made its end of it."""
        assert isinstance(options, DeepgramSttOptions)
        async with AsyncExitStack() as stack:
            with failures("deepgram"):
                socket = await self._dial(options, stack)
                await socket.send_bytes(bytes(RATE_HZ * 2 // 5))
                await socket.send_str('{"type":"CloseStream"}')
                while True:
                    message = await socket.receive()
                    if message.type is aiohttp.WSMsgType.TEXT:
                        kind = _kind(message.data)
                        if kind.type in ("Results", "Metadata", "TurnInfo"):
                            return
                        if kind.type == "Error":
                            raise stated(kind.code)
                    elif message.type is aiohttp.WSMsgType.CLOSE and message.data == aiohttp.WSCloseCode.OK:
                        return
                    else:
                        raise closed("deepgram", socket.close_code, message.extra)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def query(options: DeepgramSttOptions) -> list[tuple[str, str]]:
    """What stands in the address."""
    found: dict[str, Any] = {"model": options.model, "encoding": "linear16", "sample_rate": RATE_HZ}
    for name in ("numerals", "profanity_filter", "mip_opt_out"):
        if getattr(options, name):
            found[name] = True
    if options.is_flux:
        if options.model != "flux-general-en":
            found["language_hint"] = options.language
        if options.finds_turns:
            found |= {name: getattr(options, name) for name in FLUX_ONLY}
        else:
            found |= {"eot_threshold": 1.0, "eot_timeout_ms": OWN_TURNS_TIMEOUT_MS}
    else:
        pause_ms = options.endpointing or (PAUSE_MS if options.finds_turns else False)
        found |= {
            "channels": 1,
            "interim_results": True,
            "endpointing": pause_ms,
            "smart_format": options.smart_format,
            "punctuate": options.punctuate,
            "language": options.language,
        }
        if options.finds_turns:
            found["utterance_end_ms"] = options.utterance_end_ms or UTTERANCE_END_MS
    pairs = [(name, _written(value)) for name, value in found.items() if value is not None]
    return pairs + [("keyterm", term) for term in options.keyterm]


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Kind(msgspec.Struct):
    """Any message of Deepgram's."""

    type: str = ""
    code: str = ""


def _kind(message: str) -> _Kind:
    try:
        return msgspec.json.decode(message, type=_Kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise ProviderGarbage("deepgram: a message that is not of its protocol") from None
