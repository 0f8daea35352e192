"""A stand-in for Deepgram's live recognition: /v1/listen (nova) and /v2/listen (Flux)."""

import uuid
from typing import Any

import msgspec
from aiohttp import web

from vendors.faults import Faults, StandIn, main
from vendors.line import KEPT, Line, accept, messages
from vendors.spoken import RATE_HZ, Ear, Script

BYTES_PER_S = RATE_HZ * 2
REFUSALS = {
    400: ("INVALID_QUERY_PARAMETER", "Failed to deserialize query parameters."),
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: ("ASR_PAYMENT_REQUIRED", "Project does not have enough credits for an ASR request."),
    403: ("INSUFFICIENT_PERMISSIONS", "Project does not have access to the requested model."),
    429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later."),
}
V1 = {
    "model", "language", "encoding", "sample_rate", "channels", "multichannel", "interim_results", "endpointing",
    "utterance_end_ms", "vad_events", "smart_format", "punctuate", "numerals", "diarize_model", "keyterm", "keywords",
    "profanity_filter", "redact", "replace", "search", "tag", "mip_opt_out", "callback", "extra", "version",
}  # fmt: skip
V2 = {
    "model", "encoding", "sample_rate", "eot_threshold", "eager_eot_threshold", "eot_timeout_ms", "keyterm",
    "language_hint", "numerals", "profanity_filter", "redact", "tag", "mip_opt_out",
}  # fmt: skip
FLAGS = {
    "multichannel", "interim_results", "vad_events", "smart_format", "punctuate", "numerals", "profanity_filter",
    "mip_opt_out",
}  # fmt: skip
FLUX = {"flux-general-en", "flux-general-multi"}
MODEL_SILENCE_MS, EAGER_SILENCE_MS = 400, 200
"""Silence after which Flux is sure, or nearly sure, that a turn is over."""


class DeepgramStandIn(StandIn):
    """Deepgram. `script.text`: what it hears; None: the words that are spoken."""

    def __init__(self, key: str = "dg-test") -> None:
        super().__init__()
        self.key = key
        self.script = Script()
        self.idle_s = 10.0
        """A socket without a message for so long is closed."""
        self.answers_everything = True
        """False: a Finalize with no word to settle, or a ForceEndTurn without a turn, is not answered."""
        self.lag_bytes = 0
        """Flux has not yet transcribed so much of what it was sent."""
        self.sockets: list[dict[str, Any]] = []
        """Each socket: its query, and its messages: texts as JSON, audio as its length."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/listen", self._nova), web.get("/v2/listen", self._flux), *self.script.routes()]

    async def _nova(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _nova_problem(request.query), Nova)

    async def _flux(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _flux_problem(request.query), Flux)

    async def _serve(self, request: web.Request, problem: str, kind: Any) -> web.StreamResponse:
        query = {name: request.query.getall(name) for name in request.query}
        self.received(method="GET", path=request.path, query=query, headers=dict(request.headers), body=None)
        if request.headers.get("Authorization") != f"Token {self.key}":
            return refusal(Faults(status=401))
        if problem:
            return refusal(Faults(status=400), problem)
        socket = await accept(self, request, refusal)
        if not isinstance(socket, web.WebSocketResponse):
            return socket
        log: list[Any] = []
        self.sockets.append({"query": query, "messages": log})
        line = Line(self, request, socket, kind.KEEP_ALIVE)
        listener = kind(self, line, request.query)
        try:
            await listener.greet()
            async for message in messages(socket, self.idle_s):
                told = "" if isinstance(message, bytes) else msgspec.json.decode(message)
                log.append(told or len(message))
                del log[:-KEPT]
                if not message or (told and told.get("type") == "CloseStream"):
                    await listener.end()
                    await socket.close(code=1000)
                elif not told:
                    await listener.hear(message)
                elif not await listener.told(told.get("type", "")):
                    await socket.close(code=1008, message=b"DATA-0000")
        except TimeoutError:
            await socket.close(code=1011, message=b"Deepgram did not receive audio data or a text message. NET-0001")
        except msgspec.DecodeError:
            await socket.close(code=1008, message=b"DATA-0000")
        finally:
            line.close()
        return socket


def refusal(faults: Faults, said: str = "") -> web.Response:
    """A handshake's refusal."""
    code, text = REFUSALS.get(faults.status, ("INTERNAL_SERVER_ERROR", "Something went wrong."))
    code = faults.code or code
    headers = {"dg-request-id": str(uuid.uuid4()), "dg-error": said or text}
    if faults.retry_after:
        headers["Retry-After"] = faults.retry_after
    body = {"err_code": code, "err_msg": said or text, "request_id": headers["dg-request-id"]}
    return web.json_response(body, status=faults.status, headers=headers)


def _common_problem(query: Any, known: set[str]) -> str:
    for name, value in query.items():
        if name not in known:
            return f"unknown field `{name}`"
        if name in FLAGS and value not in ("true", "false"):
            return f"{name}: provided string was not `true` or `false`"
    if query.get("encoding") != "linear16" or query.get("sample_rate") != str(RATE_HZ):
        return "this stand-in hears linear16 at 16000 Hz only"
    return ""


def _nova_problem(query: Any) -> str:
    if problem := _common_problem(query, V1):
        return problem
    if query.get("model") in FLUX:
        return "Flux models are on /v2/listen"
    if not query.get("model", "nova-3").startswith(("nova", "base", "enhanced")):
        return "No such model/language/tier combination found."
    pause, utterance_end = query.get("endpointing", "10"), query.get("utterance_end_ms")
    if pause not in ("false", "true") and not pause.isdigit():
        return "endpointing: invalid value"
    if utterance_end is not None and not (utterance_end.isdigit() and int(utterance_end) >= 1000):
        return "utterance_end_ms must be at least 1000"
    if utterance_end is not None and query.get("interim_results") != "true":
        return "utterance_end_ms needs interim_results"
    if "keyterm" in query and not query.get("model", "").startswith("nova-3"):
        return "Keyterm Prompting is available for nova-3 only."
    return ""


def _flux_problem(query: Any) -> str:
    if problem := _common_problem(query, V2):
        return problem
    if query.get("model") not in FLUX:
        return "model: unknown variant"
    ranges = {"eot_threshold": (0.5, 1.0), "eager_eot_threshold": (0.3, 0.9), "eot_timeout_ms": (500, 60_000)}
    for name, (least, most) in ranges.items():
        if name in query and not least <= float(query[name]) <= most:
            return f"{name} must lie between {least} and {most}"
    return ""


class Nova:
    """One socket of /v1/listen."""

    KEEP_ALIVE = {"type": "SpeechStarted", "channel": [0], "timestamp": 0.0}  # noqa: RUF012
    ERROR = {"type": "Error", "description": "Something went wrong.", "variant": "INTERNAL_SERVER_ERROR"}  # noqa: RUF012

    def __init__(self, vendor: DeepgramStandIn, line: Line, query: Any) -> None:
        self._vendor, self._line = vendor, line
        self._request_id = str(uuid.uuid4())
        pause = query.get("endpointing", "10")
        self._pause_ms = int(pause) if pause.isdigit() else 0
        self._utterance_end_ms = int(query.get("utterance_end_ms", 0))
        self._interims = query.get("interim_results") == "true"
        self._all = Ear()
        self._ear = Ear()
        self._start_bytes = self._said_bytes = 0
        self._said = ""
        self._settled = False

    async def greet(self) -> None:
        """Nothing: Deepgram waits for audio."""

    async def hear(self, pcm: bytes) -> None:
        self._all.push(pcm)
        self._ear.push(pcm)
        text = self._text
        if text and self._pause_ms and self._ear.silent_ms >= self._pause_ms:
            await self._results(final=True, speech_final=True)
        elif self._interims and (text != self._said or self._all.heard_bytes - self._said_bytes >= BYTES_PER_S // 2):
            await self._results(final=False)
        if self._settled and self._utterance_end_ms and self._all.silent_ms >= self._utterance_end_ms:
            self._settled = False
            await self._line.say({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 0.0})

    @property
    def _text(self) -> str:
        return self._vendor.script.of(self._ear) if self._ear.words else ""

    async def _results(self, *, final: bool, speech_final: bool = False, from_finalize: bool = False) -> None:
        start_s, now_s = self._start_bytes / BYTES_PER_S, self._all.heard_bytes / BYTES_PER_S
        text = self._text
        if from_finalize and self._vendor.script.text is not None and now_s - start_s >= 0.1:
            text = self._vendor.script.text
        words = [
            {"word": word, "start": start_s, "end": now_s, "confidence": 0.99, "punctuated_word": word}
            for word in text.split()
        ]
        self._said, self._said_bytes = text, self._all.heard_bytes
        if final:
            self._ear, self._said, self._start_bytes = Ear(), "", self._all.heard_bytes
            self._settled = self._settled or bool(text)
        message = {
            "type": "Results",
            "channel_index": [0, 1],
            "duration": round(now_s - start_s, 3),
            "start": round(start_s, 3),
            "is_final": final,
            "speech_final": speech_final,
            "channel": {"alternatives": [{"transcript": text, "confidence": 0.99 if text else 0.0, "words": words}]},
            "metadata": {
                "request_id": self._request_id,
                "model_info": {"name": "general-nova-3", "version": "2026-01-01.0", "arch": "nova-3"},
                "model_uuid": str(uuid.UUID(int=3)),
            },
            "from_finalize": from_finalize,
        }
        await self._line.item(message, self.ERROR)

    async def told(self, kind: str) -> bool:
        if kind == "Finalize":
            if self._vendor.answers_everything or self._text:
                await self._results(final=True, from_finalize=True)
            return True
        return kind == "KeepAlive"

    async def end(self) -> None:
        if self._text:
            await self._results(final=True)
        duration = round(self._all.heard_bytes / BYTES_PER_S, 3)
        message = {"type": "Metadata", "transaction_key": "deprecated", "request_id": self._request_id}
        message |= {"sha256": "0" * 64, "created": "2026-01-01T00:00:00.000Z"}
        await self._line.item({**message, "duration": duration, "channels": 1}, self.ERROR)


class Flux:
    """One socket of /v2/listen."""

    KEEP_ALIVE = {"type": "Notice"}  # noqa: RUF012
    ERROR = {"type": "Error", "sequence_id": 9, "code": "INTERNAL_SERVER_ERROR", "description": "Something went wrong."}  # noqa: RUF012

    def __init__(self, vendor: DeepgramStandIn, line: Line, query: Any) -> None:
        self._vendor, self._line = vendor, line
        self._request_id = str(uuid.uuid4())
        self._threshold = float(query.get("eot_threshold", 0.7))
        self._eager = "eager_eot_threshold" in query
        self._timeout_ms = int(query.get("eot_timeout_ms", 5_000))
        self._sequence = self._turn = 0
        self._ear = Ear()
        self._waiting = b""
        self._heard_bytes = self._start_bytes = self._said_bytes = 0
        self._state = "Initial"
        self._eager_words = 0

    async def greet(self) -> None:
        if not self._vendor.faults.now.mute:
            await self._line._send({"type": "Connected", "request_id": self._request_id, "sequence_id": 0})

    async def hear(self, pcm: bytes) -> None:
        self._waiting += pcm
        now = max(0, len(self._waiting) - self._vendor.lag_bytes)
        while now:  # Flux works on 80 ms at a time
            piece, self._waiting = self._waiting[: min(now, 2560)], self._waiting[min(now, 2560) :]
            now -= len(piece)
            self._ear.push(piece)
            self._heard_bytes += len(piece)
            await self._look()

    @property
    def _text(self) -> str:
        return self._vendor.script.of(self._ear) if self._ear.words else ""

    async def _look(self) -> None:
        words, silent_ms = len(self._ear.words), self._ear.silent_ms
        if self._state == "Initial" and words:
            self._state = "TurnOngoing"
            await self._info("StartOfTurn")
        elif self._state == "AwaitingEnd" and words > self._eager_words:
            self._state = "TurnOngoing"
            await self._info("TurnResumed")
        elif words and self._threshold < 1.0 and silent_ms >= MODEL_SILENCE_MS:
            await self._end_turn("model")
        elif words and silent_ms >= self._timeout_ms:
            await self._end_turn("timeout")
        elif self._state == "TurnOngoing" and self._eager and silent_ms >= EAGER_SILENCE_MS:
            self._state, self._eager_words = "AwaitingEnd", words
            await self._info("EagerEndOfTurn")
        elif self._heard_bytes - self._said_bytes >= BYTES_PER_S // 4:
            await self._info("Update")

    async def _info(self, event: str, **more: Any) -> None:
        self._sequence += 1
        self._said_bytes = self._heard_bytes
        text = self._text
        message = {
            "type": "TurnInfo",
            "request_id": self._request_id,
            "sequence_id": self._sequence,
            "event": event,
            "turn_index": self._turn,
            "audio_window_start": round(self._start_bytes / BYTES_PER_S, 3),
            "audio_window_end": round(self._heard_bytes / BYTES_PER_S, 3),
            "transcript": text,
            "words": [{"word": word, "confidence": 0.99} for word in text.split()],
            "end_of_turn_confidence": 0.9 if event == "EndOfTurn" else 0.1,
            **more,
        }
        await self._line.item(message, self.ERROR)

    async def _end_turn(self, trigger: str) -> None:
        await self._info("EndOfTurn", trigger=trigger)
        self._state, self._ear, self._start_bytes = "Initial", Ear(), self._heard_bytes
        self._turn += 1

    async def told(self, kind: str) -> bool:
        if kind == "ForceEndTurn":
            if self._state != "Initial":
                await self._end_turn("manual")
            elif self._vendor.answers_everything:
                self._sequence += 1
                warning = {"type": "Warning", "request_id": self._request_id, "sequence_id": self._sequence}
                code = "FORCE_END_TURN_NO_ACTIVE_TURN"
                await self._line.say({**warning, "code": code, "description": "There is no active turn."})
            return True
        return kind == "Configure"

    async def end(self) -> None:
        self._vendor.lag_bytes, held = 0, self._vendor.lag_bytes
        await self.hear(b"")
        self._vendor.lag_bytes = held
        if self._state != "Initial":
            await self._end_turn("manual")


if __name__ == "__main__":
    main(DeepgramStandIn)
