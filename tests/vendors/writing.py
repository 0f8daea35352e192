"""What the stand-ins of language models share: an answer token by token as server-sent events, and its faults."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import chain, count, cycle
from typing import Any

import msgspec
from aiohttp import web

from vendors.faults import Faults, StandIn, forever, hang_up

SENTENCES = (
    "Sure, I can look that up for you. Your order left our warehouse this morning. "
    "It should reach your front door by tomorrow around noon."
)
TOKENS = [f" {word}" if number else word for number, word in enumerate(SENTENCES.split(" "))]
END_S = 0.002
"""From the last event to the end of the answer, which vendors send by itself."""
KEEP_ALIVE = b": keep-alive\n\n"


class Refused(Exception):  # noqa: N818 - reads as what happened
    """The vendor will not do what was asked."""

    def __init__(self, status: int, message: str, *, code: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class Writing(msgspec.Struct):
    """One answer."""

    model: str
    tokens: list[str]
    calls: list[dict[str, Any]]
    """Functions to call: `id`, `name` and `arguments` (JSON as text)."""
    reason: str
    """stop, length or calls."""
    input_tokens: int
    body: dict[str, Any]

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) + sum(len(pieces(call["arguments"])) for call in self.calls)


class ModelStandIn(StandIn):
    """A language model's server. A vendor's own class says what its protocol looks like."""

    path = ""
    done: tuple[bytes, ...] = ()
    """What follows the last event of an answer."""

    def __init__(self, key: str = "sk-test") -> None:
        super().__init__()
        self.key = key
        self.reply = list(TOKENS)
        """What it answers, token by token."""
        self.calls: list[dict[str, Any]] = []
        """The functions it calls when they are offered and none has answered yet: `name`, `arguments`, maybe `id`."""
        self.streams = 0
        """Answers that are on their way."""

    # -- the vendor's protocol ----------------------------------------------------------------------------------------

    def check(self, request: web.Request, body: Any) -> None:
        """Raises Refused where the vendor would."""
        raise NotImplementedError

    def error(self, status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
        """The vendor's error body."""
        raise NotImplementedError

    def words_of(self, body: dict[str, Any]) -> tuple[str, int, bool]:
        """The user's last words, how many tokens are wanted at most, and whether functions may be called now."""
        raise NotImplementedError

    def opening(self, writing: Writing) -> list[bytes]:
        """The events before the first token."""
        raise NotImplementedError

    def items(self, writing: Writing) -> Iterator[bytes]:
        """The events of the answer."""
        raise NotImplementedError

    def closing(self, writing: Writing) -> list[bytes]:
        """The events after the last token."""
        raise NotImplementedError

    def failure(self, code: str, message: str) -> bytes:
        """The event that tells of an error inside the stream."""
        raise NotImplementedError

    def whole(self, writing: Writing) -> dict[str, Any]:
        """The answer when it is not streamed."""
        raise NotImplementedError

    def odd(self, kind: str) -> bytes:
        """An event that is none: `json`, `nan` or `types` of `Faults.garbage`."""
        raise NotImplementedError

    # -- what happens -------------------------------------------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        return [web.post(self.path, self._complete), web.post("/__reply", self._set_reply)]

    async def _set_reply(self, request: web.Request) -> web.Response:
        """`{"tokens": […], "calls": […]}`: what to answer from now on; what is missing stays."""
        change = await request.json()
        self.reply = change.get("tokens", self.reply)
        self.calls = change.get("calls", self.calls)
        return web.json_response({"tokens": self.reply, "calls": self.calls})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        faults, raw = self.faults.now, await request.read()
        try:
            body = msgspec.json.decode(raw)
        except msgspec.MsgspecError:
            body = None
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.received(
            method="POST",
            path=request.path,
            query=dict(request.query),
            headers=dict(request.headers),
            body=body,
            peer=peer,
        )
        if faults.refuse:
            hang_up(request)
            return web.Response()
        if faults.mute:
            await forever()
        # As the vendors do, errors repeat a part of the key and of what was said.
        words = str(body.get("messages", "")) if isinstance(body, dict) else ""
        leak = f"{request.headers.get('Authorization', '')} {request.headers.get('x-api-key', '')} {words}"
        if faults.status:
            error = self.error(faults.status, faults.code, leak)
            extra = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return web.json_response(error, status=faults.status, headers=extra)
        try:
            self.check(request, body)
        except Refused as refused:
            error = self.error(refused.status, refused.code, f"{refused.message} {leak}", refused.param)
            return web.json_response(error, status=refused.status)
        writing = self._plan(body)
        if not body.get("stream"):
            return web.json_response(self.whole(writing))
        self.streams += 1
        try:
            return await self._stream(request, writing, faults, leak)
        except (ConnectionResetError, asyncio.CancelledError):
            return web.Response()
        finally:
            self.streams -= 1

    def _plan(self, body: dict[str, Any]) -> Writing:
        words, most, may_call = self.words_of(body)
        calls = [
            {"id": call.get("id", f"call_{number:03}"), "name": call["name"], "arguments": as_text(call["arguments"])}
            for number, call in enumerate(self.calls if may_call else ())
        ]
        tokens = [] if calls else self.reply[:most]
        reason = "calls" if calls else "length" if len(tokens) < len(self.reply) else "stop"
        return Writing(body["model"], tokens, calls, reason, max(1, len(words) // 4), body)

    async def _stream(self, request: web.Request, writing: Writing, faults: Faults, leak: str) -> web.StreamResponse:
        kind = "text/html" if faults.garbage == "html" else "text/event-stream; charset=utf-8"
        response = web.StreamResponse(headers={"Content-Type": kind, "Cache-Control": "no-cache"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"")  # the headers
        if faults.headers_only:
            await closed(request)
            return response
        if faults.drip_s:
            for byte in cycle(KEEP_ALIVE):
                await response.write(bytes([byte]))
                await asyncio.sleep(faults.drip_s)
        if faults.garbage:
            await self._babble(response, faults)
            return response
        for event in self.opening(writing):
            await response.write(event)
        items = self.items(writing)
        number = 0
        async for item in paced(cycle(list(items)) if faults.endless else items, faults):
            if number == faults.silent_after:
                await closed(request)
                return response
            if number == faults.cut_after:
                hang_up(request)
                return response
            if number == faults.error_after:
                await response.write(self.failure(faults.code, leak))
                return response
            await response.write(item)
            number += 1
        await response.write(b"".join([*self.closing(writing), *self.done]))
        await asyncio.sleep(END_S)
        return response

    async def _babble(self, response: web.StreamResponse, faults: Faults) -> None:
        kind = faults.garbage
        if kind == "long_line":
            await response.write(b"data: ")
            for _ in count() if faults.endless else range(160):
                await response.write(b"x" * 65536)
        elif kind == "binary":
            await response.write(bytes(range(256)) * 8 + b"\n\ndata: \xff\xfe\x00\n\n")
        elif kind == "html":
            await response.write(b"<html><body>Bad gateway</body></html>")
        elif kind != "empty":
            await response.write(self.odd(kind))


async def paced(items: Iterator[bytes], faults: Faults) -> AsyncIterator[bytes]:
    """The items when they are due."""
    await asyncio.sleep(faults.first_s)
    for number, item in enumerate(chain(items, [b""])):
        if number and faults.slow_s:
            await asyncio.sleep(faults.slow_s)
        elif number % 64 == 63:
            await asyncio.sleep(0)
        yield item


async def closed(request: web.Request) -> None:
    """Until the other side hangs up."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)


def as_text(arguments: Any) -> str:
    """A call's arguments as JSON."""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def pieces(arguments: str) -> list[str]:
    """A call's arguments as a model streams them."""
    return [arguments[at : at + 5] for at in range(0, len(arguments), 5)]
