"""What the stand-ins of voices share: audio piece by piece, with faults on demand."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import web

from vendors import voice
from vendors.faults import Faults, StandIn, forever, hang_up

PIECE_BYTES = 9_601
"""A piece of audio, 200 ms at 24 kHz. Odd: half samples travel too."""

GARBAGE = {
    "binary": ("", b"\xff\x00\x13" * 333),
    "html": ("text/html", b"<html>Bad gateway</html>"),
    "json": ("application/json", b'{"audio_base64": "AAAA"}'),
    "nan": ("application/json", b"NaN"),
    "types": ("application/json", b'{"voices": "none", "detail": 5}'),
    "long_line": ("text/plain", b"x" * 10_000_000),
    "empty": ("", b""),
}
"""Instead of audio: the content type ("": as usual) and the body."""


class SpeakingStandIn(StandIn):
    """A vendor that speaks. How loud, may be changed at `POST /__reply` too: `{"gain_db": -10}`."""

    def __init__(self) -> None:
        super().__init__()
        self.gain_db = 0.0
        """How much louder than usual it speaks."""
        self._streaming: list[web.Request] = []

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/__reply", self._reply)]

    async def _reply(self, request: web.Request) -> web.Response:
        self.gain_db = float((await request.json())["gain_db"])
        return web.json_response({"gain_db": self.gain_db})

    @property
    def texts(self) -> list[str]:
        """What it was asked to say, oldest first."""
        raise NotImplementedError

    @property
    def listeners(self) -> int:
        """How many answers are being streamed to somebody who is still there."""
        return sum(one.transport is not None and not one.transport.is_closing() for one in self._streaming)

    def admitted(self, request: web.Request, body: Any = None) -> None:
        """Note a request."""
        seen = {"query": dict(request.query), "headers": dict(request.headers), "body": body}
        self.received(method=request.method, path=request.path, **seen)

    def pieces(self, text: str, rate_hz: int) -> Iterator[bytes]:
        """The audio of a text."""
        rest = b""
        for word in voice.speak(text, rate_hz, self.gain_db):
            rest += word
            while len(rest) >= PIECE_BYTES:
                yield rest[:PIECE_BYTES]
                rest = rest[PIECE_BYTES:]
        if rest:
            yield rest

    async def stream(self, request: web.Request, pieces: Iterator[bytes], content_type: str) -> web.StreamResponse:
        """Answer with audio. An error in its middle can only break it off."""
        faults = self.faults.now
        if faults.garbage:
            kind, body = GARBAGE[faults.garbage]
            content_type, pieces = kind or content_type, iter([body])
        answer = web.StreamResponse(headers={"Content-Type": content_type})
        await answer.prepare(request)
        self._streaming.append(request)
        try:
            if faults.headers_only:
                await forever()
            while faults.drip_s:
                await answer.write(b"\0")
                await asyncio.sleep(faults.drip_s)
            async for piece in faulty(faults, request, pieces):
                if piece is None:
                    hang_up(request)
                    await forever()
                else:
                    await answer.write(piece)
            await answer.write_eof()
        finally:
            self._streaming.remove(request)
        return answer


async def faulty(faults: Faults, request: web.Request, items: Iterator[bytes]) -> AsyncIterator[bytes | None]:
    """`items`, as the faults let them through. None: here stands the vendor's error."""
    if faults.first_s:
        await asyncio.sleep(faults.first_s)
    if faults.endless:
        items = itertools.cycle(items)
    for n, item in enumerate(items):
        if n == faults.silent_after:
            await forever()
        if n == faults.cut_after:
            hang_up(request)
            await forever()
        if n == faults.error_after:
            yield None
            return
        yield item
        if faults.slow_s:
            await asyncio.sleep(faults.slow_s)
        elif faults.endless:
            await asyncio.sleep(0)
