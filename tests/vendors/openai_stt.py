"""A stand-in for OpenAI's speech to text: POST /v1/audio/transcriptions and the realtime socket."""

import asyncio
import base64
import io
import math
import re
import uuid
import wave
from typing import Any

import msgspec
from aiohttp import web

from vendors.faults import Faults, StandIn, forever, hang_up, main
from vendors.line import KEPT, Line, accept, garbage_text, messages
from vendors.spoken import Ear, Script

EXTENSIONS = ("flac", "mp3", "mp4", "mpeg", "mpga", "m4a", "ogg", "wav", "webm")
FILE_MODELS = ("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
LIVE_MODELS = ("gpt-live-transcribe", "gpt-realtime-whisper")
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
FIELDS = {
    "file", "model", "language", "prompt", "response_format", "temperature", "include[]", "timestamp_granularities[]",
    "stream", "chunking_strategy", "keywords[]", "languages[]",
}  # fmt: skip
SOCKET_RATE_HZ = 24_000
SERVER_ERROR = {"type": "server_error", "code": "server_error", "message": "The server had an error.", "param": None}


class OpenAiSttStandIn(StandIn):
    """OpenAI. `script.text`: what it hears; None: the words that are spoken."""

    def __init__(self, key: str = "sk-test") -> None:
        super().__init__()
        self.key = key
        self.script = Script()
        self.delays_s: list[float] = []
        """How long the next answers to files take, one after the other."""
        self.backwards = 0
        """On the socket, so many finals are kept until they are complete, and come in the wrong order."""
        self.sockets: list[dict[str, Any]] = []
        """Each socket: its messages, without the audio."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/audio/transcriptions", self._transcribe),
            web.get("/v1/realtime", self._realtime),
            *self.script.routes(),
        ]

    def _allowed(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.key}"

    # -- files --------------------------------------------------------------------------------------------------------

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults.now
        if faults.refuse:
            hang_up(request)
            return web.Response()
        form = await request.post()
        fields = {name: form.getall(name) for name in form if name != "file"}
        upload = form.get("file")
        sound = b""
        if isinstance(upload, web.FileField):
            with upload.file:
                sound = upload.file.read()
        body = {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
        note = {"method": "POST", "path": request.path, "query": {}, "headers": dict(request.headers)}
        note["peer"] = request.transport.get_extra_info("peername") if request.transport else None
        self.received(**note, body={**body, "file": len(sound)})
        if faults.mute:
            await forever()
        if faults.status:
            return refusal(faults)
        if not self._allowed(request):
            return refusal(Faults(status=401))
        problem = _problem(form, body, upload)
        if problem:
            return problem
        heard = _heard(sound)
        if isinstance(heard, web.Response):
            return heard
        if self.delays_s:
            await asyncio.sleep(self.delays_s.pop(0))
        answer = Answer(self, request, faults)
        text, seconds = self.script.of(heard), heard.heard_bytes / 32_000
        if body.get("stream") == "true" and body["model"] != "whisper-1":
            return await answer.events(text)
        return await answer.whole(text, str(body.get("response_format", "json")), str(body["model"]), seconds)

    # -- the socket ---------------------------------------------------------------------------------------------------

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        self.received(
            method="GET", path=request.path, query=dict(request.query), headers=dict(request.headers), body=None
        )
        if not self._allowed(request):
            return refusal(Faults(status=401))
        if request.query.get("intent") != "transcription" or "OpenAI-Beta" in request.headers:
            return refusal(Faults(status=400))
        socket = await accept(self, request, refusal)
        if not isinstance(socket, web.WebSocketResponse):
            return socket
        log: list[Any] = []
        self.sockets.append({"messages": log})
        line = Line(self, request, socket, {"type": "rate_limits.updated", "rate_limits": []})
        session = Session(self, line)
        try:
            await session.greet()
            async for message in messages(socket):
                event = msgspec.json.decode(message)
                log.append({**event, "audio": len(event["audio"])} if "audio" in event else event)
                del log[:-KEPT]
                await session.told(event)
        finally:
            line.close()
        return socket


def refusal(faults: Faults, message: str = "", param: str | None = None) -> web.Response:
    """OpenAI's error body."""
    kinds = {
        400: ("invalid_request_error", None, "Bad request."),
        401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-x***."),
        403: ("invalid_request_error", "unsupported_country_region_territory", "Not supported."),
        404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
        429: ("requests", "rate_limit_exceeded", "Rate limit reached for whisper-1."),
    }
    kind, code, text = kinds.get(faults.status, ("server_error", "server_error", "The server had an error."))
    code = faults.code or code
    if code == "insufficient_quota":
        kind = code
    headers = {"x-request-id": f"req_{uuid.uuid4().hex}", "openai-version": "2020-10-01"}
    if faults.retry_after:
        headers["Retry-After"] = faults.retry_after
    body = {"error": {"message": message or text, "type": kind, "param": param, "code": code}}
    return web.json_response(body, status=faults.status, headers=headers)


def _bad(param: str, message: str, code: str = "") -> web.Response:
    return refusal(Faults(status=400, code=code), message, param)


def _problem(form: Any, body: dict[str, Any], upload: Any) -> web.Response | None:
    for name in form:
        if name not in FIELDS:
            return _bad(name, f"Unrecognized request argument supplied: {name}")
    if not isinstance(upload, web.FileField):
        return _bad("file", "you must provide a file parameter")
    if upload.filename.rpartition(".")[2] not in EXTENSIONS:
        return _bad("file", "Unrecognized file format.")
    model = str(body.get("model", ""))
    if not model:
        return _bad("model", "you must provide a model parameter")
    if model not in FILE_MODELS:
        return refusal(Faults(status=404), f"The model `{model}` does not exist or you do not have access to it.")
    if "language" in body and not re.fullmatch("[a-z]{2}", str(body["language"])):
        return _bad("language", f"Invalid language '{body['language']}'. Language parameter must be in ISO-639-1.")
    answered = body.get("response_format", "json")
    if answered not in FORMATS:
        return _bad("response_format", f"response_format '{answered}' is not supported.")
    if model != "whisper-1" and answered != "json":
        return _bad("response_format", f"response_format '{answered}' is not compatible with model '{model}'.")
    if "keywords[]" in body and model != "gpt-transcribe":
        return _bad("keywords", "keywords are not supported by this model.")
    if "timestamp_granularities[]" in body and answered != "verbose_json":
        return _bad("timestamp_granularities", "timestamp_granularities need verbose_json.")
    try:
        warm = float(str(body.get("temperature", "0")))
    except ValueError:
        return _bad("temperature", "temperature is no number")
    return None if 0 <= warm <= 1 else _bad("temperature", "temperature must lie between 0 and 1")


def _heard(sound: bytes) -> Ear | web.Response:
    try:
        with wave.open(io.BytesIO(sound)) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            ear, pcm = Ear(file.getframerate()), file.readframes(file.getnframes())
            seconds = file.getnframes() / file.getframerate()
    except (wave.Error, EOFError, AssertionError):
        return _bad("file", "The audio file could not be decoded or its format is not supported.")
    if seconds < 0.1:
        return _bad("file", "Audio file is too short. Minimum audio length is 0.1 seconds.", "audio_too_short")
    ear.push(pcm)
    return ear


class Answer:
    """One answer, with its faults."""

    def __init__(self, vendor: OpenAiSttStandIn, request: web.Request, faults: Faults) -> None:
        self._vendor, self._request, self._faults = vendor, request, faults

    async def _begin(self, content_type: str) -> web.StreamResponse:
        kind = "text/html" if self._faults.garbage == "html" else content_type
        headers = {"Content-Type": kind, "x-request-id": f"req_{uuid.uuid4().hex}", "openai-processing-ms": "5"}
        answer = web.StreamResponse(headers=headers)
        answer.enable_chunked_encoding()
        await answer.prepare(self._request)
        if self._faults.headers_only:
            await forever()
        await asyncio.sleep(self._faults.first_s)
        return answer

    async def whole(self, text: str, answered: str, model: str, seconds: float) -> web.StreamResponse:
        """All at once: one item."""
        usage = {"type": "duration", "seconds": math.ceil(seconds)}
        if model != "whisper-1":
            usage = {"type": "tokens", "input_tokens": 20, "output_tokens": 5, "total_tokens": 25}
            usage["input_token_details"] = {"text_tokens": 0, "audio_tokens": 20}  # type: ignore[assignment]
        message: dict[str, Any] = {"text": text, "usage": usage}
        if answered == "verbose_json":
            message = {"task": "transcribe", "language": "english", "duration": seconds, "segments": [], **message}
        body = f"{text}\n".encode() if answered == "text" else msgspec.json.encode(message)
        answer = await self._begin("text/plain; charset=utf-8" if answered == "text" else "application/json")
        if not await self._item(answer, body, message, 0):
            return answer
        await answer.write_eof()
        return answer

    async def events(self, text: str) -> web.StreamResponse:
        """Word by word: each an item."""
        answer = await self._begin("text/event-stream; charset=utf-8")
        words = re.findall(r"\s*\S+", text)
        deltas = [{"type": "transcript.text.delta", "delta": word} for word in words]
        usage = {"type": "tokens", "input_tokens": 20, "output_tokens": len(words), "total_tokens": 20 + len(words)}
        done = {"type": "transcript.text.done", "text": text, "usage": usage}
        for number, message in enumerate([*deltas, done]):
            if not await self._item(answer, sse(message), message, number):
                return answer
        await answer.write_eof()
        return answer

    async def _item(self, answer: web.StreamResponse, data: bytes, message: dict[str, Any], number: int) -> bool:
        try:
            return await self._said(answer, data, message, number)
        except ConnectionError:
            return False  # they have hung up

    async def _said(self, answer: web.StreamResponse, data: bytes, message: dict[str, Any], number: int) -> bool:
        faults = self._faults
        await asyncio.sleep(faults.slow_s)
        if 0 <= faults.silent_after <= number:
            await forever()
        if 0 <= faults.cut_after <= number:
            await answer.write(data[: len(data) // 2])
            hang_up(self._request)
            return False
        if 0 <= faults.error_after <= number:
            await answer.write(sse({"error": SERVER_ERROR}))
            await answer.write_eof()
            return False
        if faults.drip_s:
            for byte in b"" if data.startswith(b"data:") else data:
                await answer.write(bytes([byte]))
                await asyncio.sleep(faults.drip_s)
            while True:
                await answer.write(b": ping\n\n")
                await asyncio.sleep(faults.drip_s)
        if faults.garbage:
            junk = (
                b"\xff\xfe\x00" * 30 if faults.garbage == "binary" else garbage_text(faults.garbage, message).encode()
            )
            await answer.write(b"data: " + junk + b"\n\n" if data.startswith(b"data:") and junk else junk)
            return True
        while faults.endless:
            await answer.write(data)
        await answer.write(data)
        return True


def sse(message: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(message) + b"\n\n"


class Session:
    """One realtime socket."""

    def __init__(self, vendor: OpenAiSttStandIn, line: Line) -> None:
        self._vendor, self._line = vendor, line
        self._model = ""
        self._ear = Ear(SOCKET_RATE_HZ)
        self._items = 0
        self._written = 0
        self._kept: list[dict[str, Any]] = []

    @property
    def _item(self) -> str:
        return f"item_{self._items}"

    async def greet(self) -> None:
        await self._line._send(self._event("session.created", session={"type": "transcription", "object": "session"}))

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:12]}", **more}

    async def _error(self, event: dict[str, Any], code: str | None, message: str, param: str | None = None) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        await self._line.say(self._event("error", error={**error, "event_id": event.get("event_id")}))

    async def told(self, event: dict[str, Any]) -> None:
        """A client's event."""
        kind = event.get("type")
        if kind == "session.update":
            await self._update(event)
        elif not self._model:
            await self._error(event, "invalid_session", "There is no transcription model.")
        elif kind == "input_audio_buffer.append":
            self._ear.push(base64.b64decode(event["audio"], validate=True))
            if self._model in LIVE_MODELS:
                await self._write()
        elif kind == "input_audio_buffer.clear":
            self._begin()
            await self._line.say(self._event("input_audio_buffer.cleared"))
        elif kind == "input_audio_buffer.commit":
            await self._commit(event)
        else:
            await self._error(event, "invalid_value", f"Invalid value: '{kind}'.", "type")

    def _begin(self) -> None:
        self._ear, self._written = Ear(SOCKET_RATE_HZ), 0
        self._items += 1

    async def _update(self, event: dict[str, Any]) -> None:
        session = event.get("session", {})
        heard = session.get("audio", {}).get("input", {})
        transcription = heard.get("transcription", {})
        if session.get("type") != "transcription":
            await self._error(event, "invalid_value", "session.type must be transcription.", "session.type")
        elif heard.get("format") != {"type": "audio/pcm", "rate": SOCKET_RATE_HZ}:
            await self._error(event, "invalid_value", "Only 24 kHz is supported.", "session.audio.input.format.rate")
        elif transcription.get("model") not in (*FILE_MODELS, *LIVE_MODELS):
            await self._error(event, "invalid_value", "Unknown model.", "session.audio.input.transcription.model")
        elif "language" in transcription and not re.fullmatch("[a-z]{2}", transcription["language"]):
            await self._error(event, "invalid_value", "No language.", "session.audio.input.transcription.language")
        elif heard.get("turn_detection") is not None:
            await self._error(event, "invalid_value", "This stand-in detects no turns.", "session.audio.input")
        else:
            self._model = transcription["model"]
            await self._line.say(self._event("session.updated", session=session))

    async def _write(self) -> None:
        text = self._vendor.script.of(self._ear) if self._ear.words else ""
        for piece in re.findall(r"\s*\S+", text[self._written :]):
            await self._transcription("delta", self._item, delta=piece, content_index=0)
        self._written = max(self._written, len(text))

    async def _transcription(self, kind: str, item: str, **more: Any) -> None:
        name = "conversation.item.input_audio_transcription."
        failed = self._event(name + "failed", item_id=item, content_index=0, error={**SERVER_ERROR})
        await self._line.item(self._event(name + kind, item_id=item, **more), failed)

    async def _commit(self, event: dict[str, Any]) -> None:
        ear, item = self._ear, self._item
        if ear.heard_bytes < SOCKET_RATE_HZ // 10 * 2:
            said = "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio."
            await self._error(event, "input_audio_buffer_commit_empty", said)
            return
        previous = f"item_{self._items - 1}" if self._items else None
        await self._line.say(self._event("input_audio_buffer.committed", previous_item_id=previous, item_id=item))
        await self._write()
        self._begin()
        usage = {"type": "tokens", "input_tokens": 20, "output_tokens": 5, "total_tokens": 25}
        final = {"item": item, "content_index": 0, "transcript": self._vendor.script.of(ear), "usage": usage}
        self._kept.append(final)
        if len(self._kept) > self._vendor.backwards - 1:
            kept, self._kept = self._kept[::-1], []
            for final in kept:
                await self._transcription("completed", final.pop("item"), **final)


if __name__ == "__main__":
    main(OpenAiSttStandIn)
