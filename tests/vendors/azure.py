"""Azure AI Speech, as far as its documentation (REST) and its SDK (WebSocket) describe text to speech.

Its voice: vendors/voice.py. Faults amid the audio are for REST; a WebSocket knows `status`, `refuse` and `mute`.
"""

import asyncio
import re
from typing import Any
from xml.etree import ElementTree

import msgspec
from aiohttp import WSMsgType, web

from vendors.faults import forever, hang_up, main
from vendors.speaking import SpeakingStandIn

KEY = "azure-test"

VOICES = {"en-US-JennyNeural": "Jenny", "en-US-GuyNeural": "Guy", "de-DE-KatjaNeural": "Katja"}

RATES_HZ = {"8khz": 8_000, "16khz": 16_000, "22050hz": 22_050, "24khz": 24_000, "44100hz": 44_100, "48khz": 48_000}

_FORMAT = re.compile(r"raw-(\w+)-16bit-mono-pcm")
_SSML = "{http://www.w3.org/2001/10/synthesis}"
_MSTTS = "{https://www.w3.org/2001/mstts}"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


class AzureStandIn(SpeakingStandIn):
    """The vendor on this machine."""

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self._key = key

    async def __aenter__(self) -> "AzureStandIn":
        await self.start()
        return self

    @property
    def texts(self) -> list[str]:
        """What it was asked to say, oldest first."""
        return [one["body"]["text"] for one in self.requests if isinstance(one.get("body"), dict)]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/cognitiveservices/v1", self._speak),
            web.get("/cognitiveservices/voices/list", self._list),
            web.get("/cognitiveservices/websocket/v1", self._socket),
            *super().routes(),
        ]

    async def _admit(self, request: web.Request, body: Any = None) -> web.Response | None:
        """The answer, if it is not to be what was asked for. Errors have no body to speak of."""
        self.admitted(request, body)
        faults = self.faults.now
        if faults.refuse:
            hang_up(request)
        if faults.mute and request.headers.get("Upgrade") is None:
            await forever()
        if faults.status:
            after = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return web.Response(status=faults.status, text=faults.code, headers=after)
        if request.headers.get("Ocp-Apim-Subscription-Key") != self._key:
            return web.Response(status=401)
        return None

    async def _list(self, request: web.Request) -> web.Response:
        if (refusal := await self._admit(request)) is not None:
            return refusal
        found = [
            {
                "Name": f"Microsoft Server Speech Text to Speech Voice ({short[:5]}, {short[6:]})",
                "DisplayName": name,
                "LocalName": name,
                "ShortName": short,
                "Gender": "Female",
                "Locale": short[:5],
                "SampleRateHertz": "24000",
                "VoiceType": "Neural",
                "Status": "GA",
                "WordsPerMinute": "150",
            }
            for short, name in VOICES.items()
        ]
        return web.json_response(found)

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        raw = (await request.read()).decode(errors="replace")
        asked, wrong = read_ssml(raw)
        if (refusal := await self._admit(request, {"ssml": raw, **asked})) is not None:
            return refusal
        if request.content_type != "application/ssml+xml":
            return web.Response(status=415)
        agent = request.headers.get("User-Agent", "")
        rate_hz = rate_of(request.headers.get("X-Microsoft-OutputFormat", ""))
        if wrong or not rate_hz or not agent or len(agent) >= 255:
            return web.Response(status=400, text=wrong)
        return await self.stream(request, self.pieces(asked["text"], rate_hz), "audio/basic")

    # -- the SDK's WebSocket ------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._admit(request)) is not None:
            return refusal
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        rate_hz = 0
        async for received in socket:
            if received.type is not WSMsgType.TEXT or self.faults.now.mute:
                continue
            headers, body = read_message(received.data)
            match headers.get("path"):
                case "synthesis.context":
                    rate_hz = rate_of(msgspec.json.decode(body)["synthesis"]["audio"]["outputFormat"])
                case "ssml":
                    asked, wrong = read_ssml(body)
                    self.received(method="WS", path=request.path, body={"ssml": body, **asked})
                    if wrong or not rate_hz:
                        await socket.close(code=1007, message=wrong.encode())
                    else:
                        await self._say(socket, headers["x-requestid"], asked["text"], rate_hz)
        return socket

    async def _say(self, socket: web.WebSocketResponse, request: str, text: str, rate_hz: int) -> None:
        async def tell(path: str, body: Any) -> None:
            head = f"X-RequestId:{request}\r\nContent-Type:application/json; charset=utf-8\r\nPath:{path}\r\n\r\n"
            await socket.send_str(head + msgspec.json.encode(body).decode())

        async def play(audio: bytes) -> None:
            head = (
                f"X-RequestId:{request}\r\nContent-Type:audio/x-wav\r\nX-StreamId:{request}\r\nPath:audio\r\n".encode()
            )
            await socket.send_bytes(len(head).to_bytes(2, "big") + head + audio)

        await tell("turn.start", {"context": {"serviceTag": request}})
        await tell("response", {"context": {"serviceTag": request}, "audio": {"type": "inline", "streamId": request}})
        for piece in self.pieces(text, rate_hz):
            await play(piece)
            await asyncio.sleep(self.faults.now.slow_s)
        await play(b"")
        await tell("turn.end", {})


def read_message(text: str) -> tuple[dict[str, str], str]:
    """The headers, in lower case, and the body of a text frame."""
    head, _, body = text.partition("\r\n\r\n")
    pairs = (line.partition(":") for line in head.split("\r\n"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}, body


def rate_of(output_format: str) -> int:
    """0 for a format that is none of its headerless PCM formats."""
    match = _FORMAT.fullmatch(output_format)
    return RATES_HZ.get(match[1], 0) if match else 0


def read_ssml(ssml: str) -> tuple[dict[str, Any], str]:
    """What a document asks for, and what is wrong with it."""
    asked: dict[str, Any] = {"text": ""}
    if "<!" in ssml:
        return asked, "DTD is not supported."
    try:
        root = ElementTree.fromstring(ssml)
    except (ElementTree.ParseError, ValueError):
        return asked, "The SSML is not well-formed."
    spoken = root.find(f"{_SSML}voice")
    if root.tag != f"{_SSML}speak" or root.get("version") != "1.0" or not root.get(_LANG) or spoken is None:
        return asked, "The SSML needs speak, version, xml:lang and voice."
    asked |= {"text": "".join(spoken.itertext()), "voice": spoken.get("name"), "language": root.get(_LANG)}
    for element in spoken.iter():
        if element.tag == f"{_SSML}prosody":
            asked |= element.attrib
            if any(not re.fullmatch(r"[+-]\d+(\.\d+)?%", value) for value in element.attrib.values()):
                return asked, "Invalid prosody."
        elif element.tag == f"{_MSTTS}express-as":
            asked["style"] = element.get("style")
        elif element is not spoken:
            return asked, f"Unexpected element {element.tag}."
    if asked["voice"] not in VOICES:
        return asked, f"Unsupported voice {asked['voice']}."
    return asked, ""


if __name__ == "__main__":
    main(AzureStandIn)
