"""ElevenLabs, as far as its API reference describes text to speech. Its voice: vendors/voice.py.

What the reference leaves open is as those report it who run it: a context gets its `isFinal` only once it is closed,
one that is closed before its first audio gets no audio, and one that was flushed speaks on to its end though closed.
"""

import asyncio
import base64
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from vendors import voice
from vendors.faults import forever, hang_up, main
from vendors.speaking import SpeakingStandIn, faulty

KEY = "el-test"

VOICES = {
    "21m00Tcm4TlvDq8ikWAM": "Rachel",
    "CwhRBWXzGAHq8TQ4Fs17": "Roger - Laid-Back, Casual",
    "EXAVITQu4vr4xnSDxMaL": "Sarah",
}

MODELS = {"eleven_flash_v2_5", "eleven_turbo_v2_5", "eleven_multilingual_v2", "eleven_v3"}

CHARS_MOST = {"eleven_multilingual_v2": 10_000, "eleven_v3": 5_000}

CONTEXTS_MOST = 5

ALONE = ""
"""The one context of `stream-input`."""


class VoiceSettings(msgspec.Struct, forbid_unknown_fields=True):
    """How a voice speaks."""

    stability: float | None = None
    similarity_boost: float | None = None
    style: float | None = None
    use_speaker_boost: bool | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        for name in ("stability", "similarity_boost", "style"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} must be between 0 and 1")
        if self.speed is not None and not 0.7 <= self.speed <= 1.2:
            raise ValueError("speed must be between 0.7 and 1.2")


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request."""

    text: str
    model_id: str = "eleven_multilingual_v2"
    voice_settings: VoiceSettings | None = None
    language_code: str | None = None
    seed: int | None = None
    previous_text: str | None = None
    next_text: str | None = None
    apply_text_normalization: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message on a WebSocket."""

    text: str | None = None
    context_id: str | None = None
    voice_settings: VoiceSettings | None = None
    generation_config: dict[str, Any] | None = None
    flush: bool = False
    try_trigger_generation: bool = False
    close_context: bool = False
    close_socket: bool = False
    xi_api_key: str | None = None


class ElevenLabsStandIn(SpeakingStandIn):
    """The vendor on this machine."""

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self._key = key
        self.idle_s: float | None = None
        """In place of the `inactivity_timeout` that a client asks for."""
        self.voices = dict(VOICES)
        self.sockets: set[web.WebSocketResponse] = set()
        self.complaints: list[str] = []
        """The words with which it closed sockets, oldest first."""
        self.closed_with: list[int | None] = []
        """The close codes of the sockets that have ended."""

    async def __aenter__(self) -> "ElevenLabsStandIn":
        await self.start()
        return self

    @property
    def texts(self) -> list[str]:
        """What it was asked to say, oldest first."""
        said = (one["body"].get("text") for one in self.requests if isinstance(one.get("body"), dict))
        return [text.strip() for text in said if text and text.strip()]

    def routes(self) -> list[web.RouteDef]:
        at = "/v1/text-to-speech/{voice}"
        return [
            web.get("/v1/voices", self._list),
            web.post(at, self._speak),
            web.post(f"{at}/stream", self._speak),
            web.get(f"{at}/stream-input", self._socket),
            web.get(f"{at}/multi-stream-input", self._socket),
            *super().routes(),
        ]

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _admit(self, request: web.Request, body: Any = None) -> web.Response | None:
        """The answer, if it is not to be what was asked for."""
        self.admitted(request, body)
        faults = self.faults.now
        if faults.refuse:
            hang_up(request)
        if faults.mute and request.headers.get("Upgrade") is None:
            await forever()
        if faults.status:
            usual = {401: "invalid_api_key", 404: "voice_not_found", 429: "too_many_concurrent_requests"}
            code = faults.code or usual.get(faults.status, "internal_server_error")
            return problem(faults.status, code, {"Retry-After": faults.retry_after} if faults.retry_after else {})
        if request.headers.get("xi-api-key") != self._key:
            return problem(401, "invalid_api_key")
        return None

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._admit(request)) is not None:
            return refusal
        if self.faults.now.garbage:
            return await self.stream(request, iter(()), "application/json")
        found = [
            {"voice_id": key, "name": name, "labels": {}, "category": "premade"} for key, name in self.voices.items()
        ]
        return web.json_response({"voices": found})

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        try:
            raw: Any = msgspec.json.decode(await request.read())
        except msgspec.MsgspecError:
            raw = None
        if (refusal := await self._admit(request, raw)) is not None:
            return refusal
        try:
            body = msgspec.convert(raw, Body)
            rate_hz = rate_of(request.query.get("output_format", "mp3_44100_128"))
        except (msgspec.MsgspecError, ValueError) as error:
            detail = [{"loc": ["body"], "msg": str(error), "type": "value_error"}]
            return web.json_response({"detail": detail}, status=422)
        if request.match_info["voice"] not in self.voices:
            return problem(404, "voice_not_found")
        if body.model_id not in MODELS:
            return problem(400, "model_not_found")
        if len(body.text) > CHARS_MOST.get(body.model_id, 40_000):
            return problem(400, "max_character_limit_exceeded")
        return await self.stream(request, self.pieces(body.text, rate_hz), "audio/pcm")

    # -- WebSockets ---------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._admit(request)) is not None:
            return refusal
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.add(socket)
        try:
            await _Socket(self, request, socket).run()
        except ConnectionError:  # it went while it was spoken to
            pass
        finally:
            self.sockets.discard(socket)
            self.closed_with.append(socket.close_code)
        return socket

    async def hang_up_idle(self) -> None:
        """Close every socket, as one that was idle for too long."""
        for socket in list(self.sockets):
            await refuse(socket, "input_timeout_exceeded")


class _Socket:
    """One connection, and what is open on it."""

    def __init__(self, vendor: ElevenLabsStandIn, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._vendor = vendor
        self._request = request
        self._socket = socket
        self._multi = request.path.endswith("multi-stream-input")
        self._auto = request.query.get("auto_mode") == "true"
        self._open: dict[str, _Context] = {}

    async def run(self) -> None:
        if (word := self._problem()) is not None:
            await refuse(self._socket, word)
            return
        idle_s = self._vendor.idle_s or float(self._request.query.get("inactivity_timeout", "20"))
        try:
            while (word := await self._hear(idle_s)) == "":
                pass
            if word is not None:
                self._vendor.complaints.append(word)
                await refuse(self._socket, word)
        finally:
            for context in self._open.values():
                context.task.cancel()

    def _problem(self) -> str | None:
        query = self._request.query
        if self._request.match_info["voice"] not in self._vendor.voices:
            return "voice_id_does_not_exist"
        if query.get("model_id", "eleven_multilingual_v2") not in MODELS - {"eleven_v3"}:
            return "model_not_found"
        try:
            self._rate_hz = rate_of(query.get("output_format", "mp3_44100_128"))
            return None if 1 <= float(query.get("inactivity_timeout", "20")) <= 180 else "invalid_input_message"
        except ValueError:
            return "invalid_input_message"

    async def _hear(self, idle_s: float) -> str | None:
        """Take one message. Returns what is wrong with it, None at the end."""
        try:
            received = await self._socket.receive(timeout=idle_s)
        except TimeoutError:
            return "input_timeout_exceeded"
        if received.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return None
        try:
            raw = msgspec.json.decode(received.data)
            message = msgspec.convert(raw, Message)
        except (msgspec.MsgspecError, TypeError):
            return "invalid_input_message"
        self._vendor.received(method="WS", path=self._request.path, body=raw)
        if self._vendor.faults.now.mute:
            return ""
        return await self._do(message)

    async def _do(self, message: Message) -> str | None:
        if message.close_socket:
            await asyncio.gather(*(context.finish() for context in list(self._open.values())))
            return None
        name = message.context_id or ("default" if self._multi else ALONE)
        context = self._open.get(name)
        if context is None and (message.text is not None or message.flush):
            if len(self._open) == CONTEXTS_MOST:
                return "max_active_conversations"
            context = self._open[name] = _Context(self, name)
        elif message.voice_settings is not None:
            return "invalid_input_message"
        if context is None:
            return ""
        context.pending += message.text or ""
        ended = not self._multi and message.text == ""
        if message.flush or message.try_trigger_generation or ended or (self._auto and context.pending.strip()):
            context.generate()
        if message.close_context:
            await context.close()
        if ended:
            await context.finish()
            await self._socket.close()
            return None
        return ""

    async def send(self, name: str, **what: Any) -> None:
        """Say something of a context."""
        if not self._socket.closed:
            await self._socket.send_json({**what, **({"contextId": name} if self._multi else {})})

    async def send_garbage(self, kind: str) -> None:
        """Say something that is none of its messages."""
        if kind == "binary":
            await self._socket.send_bytes(b"\x00\xff" * 500)
            return
        texts = {
            "html": "<html>Bad gateway</html>",
            "json": '{"type": "pong", "audio_event": {"audio_base_64": "AAAA"}}',
            "nan": '{"audio": NaN}',
            "types": '{"audio": 5, "isFinal": "yes", "contextId": ["1"]}',
            "long_line": '{"audio": "' + "A" * 10_000_000 + '"}',
        }
        await self._socket.send_str(texts.get(kind, ""))

    async def speak(self, context: "_Context", text: str) -> None:
        """Send the audio of a text."""
        faults = self._vendor.faults.now
        await asyncio.sleep(0.005)  # what is closed by then was closed too early
        if faults.headers_only or context.closed:
            return
        if faults.garbage:
            await self.send_garbage(faults.garbage)
            return
        while faults.drip_s:
            await self.send(context.name, audio="", isFinal=None)
            await asyncio.sleep(faults.drip_s)
        alignment: dict[str, Any] | None = {
            "chars": list(text),
            "charStartTimesMs": [voice.CHAR_MS * at for at in range(len(text))],
            "charsDurationsMs": [voice.CHAR_MS] * len(text),
        }
        async for piece in faulty(faults, self._request, self._vendor.pieces(text, self._rate_hz)):
            if piece is None:
                await refuse(self._socket, faults.code or "quota_exceeded")
                return
            context.begun = True
            audio = base64.b64encode(piece).decode()
            await self.send(context.name, audio=audio, isFinal=None, normalizedAlignment=alignment, alignment=alignment)
            alignment = None

    def forget(self, name: str) -> None:
        """A context has come to its end."""
        self._open.pop(name, None)


class _Context:
    """One context: texts to be spoken one after the other."""

    def __init__(self, socket: _Socket, name: str) -> None:
        self._socket = socket
        self.name = name
        self.pending = ""
        self.begun = self.closed = False
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    def generate(self) -> None:
        """Speak what has come so far."""
        if self.pending.strip():
            self._texts.put_nowait(self.pending)
        self.pending = ""

    async def close(self) -> None:
        """Speak to the end of what is being spoken; nothing, if nothing is yet."""
        if not self.begun:
            self.closed = True
        self._texts.put_nowait(None)

    async def finish(self) -> None:
        """Speak everything, and wait for it."""
        self.generate()
        self._texts.put_nowait(None)
        await asyncio.wait([self.task])

    async def _run(self) -> None:
        try:
            while (text := await self._texts.get()) is not None:
                if not self.closed:
                    await self._socket.speak(self, text)
            await self._socket.send(self.name, audio=None, isFinal=True, normalizedAlignment=None, alignment=None)
        except ConnectionError:
            pass
        finally:
            self._socket.forget(self.name)


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    """The vendor's error body."""
    detail = {"status": code, "message": f"Refused: {code}."}
    return web.json_response({"detail": detail}, status=status, headers=headers)


async def refuse(socket: web.WebSocketResponse, word: str) -> None:
    """The vendor's error message, and the end of the connection."""
    message = f"Refused: {word}. Please look it up in the documentation."
    await socket.send_json({"message": message, "error": word, "code": 1008})
    await socket.close(code=1008, message=message.encode()[:123])


def rate_of(output_format: str) -> int:
    """Raises ValueError for a format that is none of its PCM formats."""
    kind, _, rate = output_format.partition("_")
    if kind != "pcm" or rate not in ("8000", "16000", "22050", "24000", "32000", "44100", "48000"):
        raise ValueError(f"output_format {output_format} is not offered here")
    return int(rate)


if __name__ == "__main__":
    main(ElevenLabsStandIn)
