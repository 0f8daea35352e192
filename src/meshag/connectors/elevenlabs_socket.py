"""ElevenLabs' `multi-stream-input`: one WebSocket for a session's voice, a context in it for every sentence.

What is not in the vendor's pages, but in the reports of those who run it: `isFinal` comes only for a context that was
closed; one that is closed before its first audio may stay silent; an interrupted one counts as open until `isFinal`;
with the sixth open context the socket is closed.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from meshag.connectors.http import Http, as_ours
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderUnavailable,
)

CONTEXTS_MOST = 5
"""The vendor closes a socket on which more are open."""

HELD_BYTES = 4 * 1024 * 1024
"""Audio that is kept for a caller who hears it slower than it is made: more than a minute. Then the socket waits."""

SEND_S = 1.0
"""A socket that does not take a short message within this time is dead."""

_CODE = re.compile(r"[a-z0-9_]{1,60}")
_LIMITED = frozenset(
    {"rate_limit_exceeded", "too_many_concurrent_requests", "concurrent_limit_exceeded", "system_busy"}
)
_UNAUTHORIZED = frozenset(
    {"authentication_failed", "authorization_error", "detected_unusual_activity", "invalid_api_key"}
    | {"missing_permissions", "needs_authorization", "unauthorized"}
)
_REJECTED = frozenset({"invalid_input_message", "invalid_message", "max_character_limit_exceeded", "model_not_found"})


class HungUp(ProviderUnavailable):
    """The socket was closed, as idle ones are: the same sentence may be asked for on a new one."""


class _Event(msgspec.Struct):
    """A message of the server. Others of its fields tell when each character is spoken."""

    audio: bytes | None = None
    isFinal: bool | None = None  # noqa: N815 - the wire's name
    is_final: bool | None = None
    contextId: str | None = None  # noqa: N815
    context_id: str | None = None
    error: str | None = None


_DECODER = msgspec.json.Decoder(_Event)


class _Context:
    """One sentence on its way. Its audio is taken with `audio()`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closing = False
        """Whether the server was told that no more text follows."""
        self._items: asyncio.Queue[bytes | ConnectorError | None] = asyncio.Queue()
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, pcm: bytes) -> None:
        """Add audio; waits while too much is held."""
        await self._room.wait()
        self._held_bytes += len(pcm)
        if self._held_bytes > HELD_BYTES:
            self._room.clear()
        self._items.put_nowait(pcm)

    def end(self, error: ConnectorError | None = None) -> None:
        """No more comes; `error`: why."""
        self._items.put_nowait(error)

    def abandon(self) -> None:
        """Nobody takes its audio any more: the socket must not wait."""
        self._room.set()

    async def audio(self) -> AsyncIterator[bytes]:
        """Its audio as it comes, to its end. Raises ConnectorError when it broke."""
        while (item := await self._items.get()) is not None:
            if isinstance(item, ConnectorError):
                raise item
            self._held_bytes -= len(item)
            if self._held_bytes <= HELD_BYTES:
                self._room.set()
            yield item


class Line:
    """An open socket. It is read all the time, so that pings are answered and its end is known before it is needed."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reading: asyncio.Task[None] | None = None
        self._names = map(str, itertools.count(1))
        self._open: set[str] = set()
        self._current: _Context | None = None
        self._broken: ConnectorError | None = None

    @property
    def usable(self) -> bool:
        """Whether one more sentence may be asked for on it."""
        return self._socket is not None and self._broken is None and len(self._open) < CONTEXTS_MOST

    async def dial(self, url: str, headers: Mapping[str, str]) -> None:
        """Open it. Raises ConnectorError; when cancelled, nothing stays open."""
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(url, headers, connected))
        try:
            await connected
        except BaseException:
            self._reading.cancel()
            raise

    async def say(self, text: str, settings: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """The audio of a sentence, as it comes. What still comes for an earlier one is dropped from now on.

        When the iterator is closed, so is the context, at once.
        """
        context = self._current = _Context(next(self._names))
        name = {"context_id": context.name}
        self._open.add(context.name)
        try:
            await self._send({"text": " ", **name, **({"voice_settings": settings} if settings else {})})
            await self._send({"text": f"{text} ", **name, "flush": True})
            async for pcm in context.audio():
                yield pcm
        finally:
            context.abandon()
            if self._current is context:
                self._current = None
            if context.name in self._open and not context.closing and self._broken is None:
                with suppress(ConnectorError):  # then the socket is gone, and the context with it
                    await self._close(context)

    def cut(self) -> None:
        """Hang up; the goodbye is said in the background."""
        self._broken = self._broken or HungUp("elevenlabs: closed")
        if self._reading is not None:
            self._reading.cancel()

    async def aclose(self) -> None:
        """Hang up, and wait for it. Idempotent."""
        self.cut()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _close(self, context: _Context) -> None:
        context.closing = True
        await self._send({"context_id": context.name, "close_context": True})

    async def _send(self, message: Mapping[str, Any]) -> None:
        if self._broken is not None or self._socket is None:
            raise self._broken or HungUp("elevenlabs: closed")
        try:
            async with asyncio.timeout(SEND_S):
                await self._socket.send_str(msgspec.json.encode(message).decode())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self.cut()
            raise HungUp(f"elevenlabs: {type(error).__name__}") from error

    async def _read(self, url: str, headers: Mapping[str, str], connected: "asyncio.Future[None]") -> None:
        try:
            async with self._http.websocket(url, headers=headers) as self._socket:
                if not connected.done():
                    connected.set_result(None)
                async for message in self._socket:
                    await self._take(message)
                raise HungUp(f"elevenlabs: closed with {self._socket.close_code}")
        except ConnectorError as error:
            self._broken = error
        finally:
            self._broken = self._broken or HungUp("elevenlabs: closed")
            if not connected.done():
                connected.set_exception(self._broken)
            if self._current is not None:
                self._current.end(self._broken)

    async def _take(self, message: aiohttp.WSMessage) -> None:
        if message.type is aiohttp.WSMsgType.ERROR:
            raise as_ours("elevenlabs", message.data) or ProviderGarbage("elevenlabs: a broken frame")
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ProviderGarbage("elevenlabs: a message that is no text")
        try:
            event = _DECODER.decode(message.data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ProviderGarbage(f"elevenlabs: {type(error).__name__}") from None
        if event.error is not None:
            raise _by_word(event.error)
        name = event.contextId or event.context_id
        context = self._current if self._current is not None and self._current.name == name else None
        if event.audio and context is not None:
            if not context.closing:
                await self._close(context)
            await context.put(event.audio)
        if (event.isFinal or event.is_final) and name is not None:
            self._open.discard(name)
            if context is not None:
                context.end()


def _by_word(word: str) -> ConnectorError:
    """The error that the vendor's short word means."""
    what = f"elevenlabs: {word}" if _CODE.fullmatch(word) else "elevenlabs: an error"
    if word in ("input_timeout_exceeded", "max_active_conversations"):
        return HungUp(what)
    if word == "quota_exceeded":
        return ProviderUnavailable(what, code="provider_quota")
    if word in ("voice_id_does_not_exist", "voice_not_found"):
        return ProviderRejected(what, code="voice_unknown")
    if word in _UNAUTHORIZED:
        return ProviderRejected(what, code="provider_unauthorized")
    if word in _LIMITED:
        return ProviderLimited(what)
    return ProviderRejected(what) if word in _REJECTED else ProviderUnavailable(what)
