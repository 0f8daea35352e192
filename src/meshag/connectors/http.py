"""What every vendor's connector needs of HTTP: one pool, bounded answers, and every failure as one of ours.

A vendor's own words may hold what a caller said or a part of a key, so they are never repeated: errors tell the status
and, where the vendor gives one, its short code.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from json import dumps
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from meshag import clock
from meshag.connectors.contracts import CONNECT_MS
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

LINE_BYTES = 1024 * 1024
"""An event of an event stream is shorter than this."""

ERROR_BYTES = 16 * 1024
"""As much of an error's body is read."""

END_S = 0.05
"""From the last event of a stream to the end of the answer."""

RETRY_AFTER_MOST_S = 300.0
"""A provider that wants more patience than this is asked again all the same."""

MOST_TOKENS = 1_000_000_000
"""A usage report beyond this is none."""

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,60}")

_LIBRARIES = ("aiohttp", "asyncio", "msgspec")
"""What these raise is about an answer, though not all of it has a base that says so."""


@dataclass
class _Wire:
    """The connection that a request went over."""

    reused: bool = False
    """It was kept from an earlier request."""


class Http:
    """One connector's connections: made when first used, kept warm, closed with it."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool. Its timeouts are the caller's business: every call stands under `Deadlines`."""
        return self._pool(kept=True)

    def _pool(self, *, kept: bool) -> aiohttp.ClientSession:
        """`kept`: its connections serve one request after the other; else each request has its own."""
        if kept not in self._sessions or self._sessions[kept].closed:
            keep: dict[str, Any] = {"keepalive_timeout": 60} if kept else {"force_close": True}
            self._sessions[kept] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, **keep),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_noting_the_wire()],
            )
        return self._sessions[kept]

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        for session in self._sessions.values():
            await session.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        json: Any = None,
        data: bytes | Callable[[], Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a status below 300. Raises ConnectorError for everything else, also while it is read.

        `json`: a value to be sent as JSON. `data`: a body, or what makes one each time it is sent, as a form that can
        be read only once. Redirects are not followed: a key belongs to one address.

        A kept connection may be closed by the other side just as it is used again, which says nothing about the
        provider. So when one ends before any byte of an answer came, the request is sent once more, over a new one.
        POST too, which RFC 9110, 9.2.2, leaves to clients that know it to be idempotent in effect: what is asked for
        here is an answer, and nothing is changed by asking. Had the first one been acted upon all the same, it would
        cost one answer more. A browser does the same; Go's net/http sends a POST again only where nothing of it was
        written. A new connection that breaks is a failure at once.
        """
        if json is not None:
            headers = {**headers, "Content-Type": "application/json"}
            data = encoded(json)
        with failures(self.provider):
            async with await self._sent(method, url, headers, data) as answer:
                if answer.status >= 300:
                    raise await refused(self.provider, answer)
                yield answer

    async def _sent(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Callable[[], Any] | None
    ) -> aiohttp.ClientResponse:
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_MS.get() / 1000)

        async def send(wire: _Wire, *, kept: bool) -> aiohttp.ClientResponse:
            return await self._pool(kept=kept).request(
                method,
                url,
                headers=headers,
                data=data() if callable(data) else data,
                allow_redirects=False,
                timeout=limit,
                trace_request_ctx=wire,
            )

        wire = _Wire()
        try:
            return await send(wire, kept=True)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError) as error:
            if not wire.reused or _has_begun(error):
                raise
        return await send(wire, kept=False)

    @asynccontextmanager
    async def websocket(
        self, url: str, *, headers: Mapping[str, str], max_message_bytes: int = 4 * LINE_BYTES
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """An open socket. Raises ConnectorError when the handshake is refused, or the connection breaks."""
        with failures(self.provider):
            try:
                async with self.session.ws_connect(
                    url,
                    headers=headers,
                    max_msg_size=max_message_bytes,
                    compress=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                ) as socket:
                    yield socket
            except aiohttp.WSServerHandshakeError as error:
                raise by_status(self.provider, error.status, "", error.headers or {}) from None


def _noting_the_wire() -> aiohttp.TraceConfig:
    """Notes in a request's `_Wire`, where it has one, which kind of connection it was given."""

    def note(*, reused: bool) -> Any:
        async def noted(session: aiohttp.ClientSession, trace: SimpleNamespace, params: object) -> None:
            if isinstance(trace.trace_request_ctx, _Wire):
                trace.trace_request_ctx.reused = reused

        return noted

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note(reused=True))
    trace.on_connection_create_start.append(note(reused=False))  # the client sends a GET again itself
    return trace


def _has_begun(error: aiohttp.ClientError) -> bool:
    """Whether a part of an answer's head had come. After a reset it cannot be told, and is as good as never so."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


class failures:  # noqa: N801 - reads as a statement
    """`with failures("openai"):` whatever the HTTP client raises leaves as a ConnectorError."""

    def __init__(self, provider: str) -> None:
        self._provider = provider

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and (ours := as_ours(self._provider, error)) is not None:
            raise ours from error


def host_of(url: str) -> str:
    """The host of an http(s) address; empty for anything else."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.scheme in ("http", "https") and parts.port != 0 else ""
    except ValueError:
        return ""


def encoded(value: Any) -> bytes:
    """A value as JSON. Halves of surrogate pairs, which UTF-8 cannot hold, become question marks."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def as_ours(provider: str, error: BaseException) -> ConnectorError | None:
    """What an exception of the HTTP client means; None for one that is none of its own."""
    if isinstance(error, ConnectorError) or not isinstance(error, Exception):
        return None
    name = type(error).__name__
    if isinstance(error, (TimeoutError, aiohttp.ServerTimeoutError)):
        return ProviderTimeout(f"{provider}: {name}")
    if isinstance(error, aiohttp.InvalidURL):
        return ProviderGarbage(f"{provider}: {name}")
    if isinstance(error, aiohttp.ClientResponseError):
        return by_status(provider, error.status, "", error.headers or {})
    if isinstance(error, (aiohttp.ClientError, OSError, EOFError)):
        return ProviderUnavailable(f"{provider}: {name}")
    if isinstance(error, (ValueError, RuntimeError)) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return ProviderGarbage(f"{provider}: {name}")
    return None


async def refused(provider: str, answer: aiohttp.ClientResponse) -> ConnectorError:
    """What an answer with an error status means."""
    try:
        async with asyncio.timeout(1):
            body = await answer.content.read(ERROR_BYTES)
    except (TimeoutError, aiohttp.ClientError, OSError):
        body = b""
    return by_status(provider, answer.status, error_code(body), answer.headers)


def error_code(body: bytes) -> str:
    """The short code in a vendor's JSON error, wherever it stands: `rate_limit_exceeded`. Empty where there is none."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    if not isinstance(found, dict):
        return ""
    inner = next((found[key] for key in ("error", "detail") if isinstance(found.get(key), dict)), found)
    for key in ("code", "type", "status", "err_code", "category"):
        value = inner.get(key)
        if isinstance(value, str) and _CODE.fullmatch(value):
            return value
    return ""


def by_status(provider: str, status: int, code: str, headers: Mapping[str, str]) -> ConnectorError:
    """The error that an HTTP status means. `code`: the vendor's own short word for it."""
    what = f"{provider}: HTTP {status}" + (f" {code}" if code else "")
    if code in ("insufficient_quota", "quota_exceeded"):  # with status 429 at one vendor, 401 at another
        return ProviderUnavailable(what, code="provider_quota")
    if status == 429:
        return ProviderLimited(what, retry_after_s=retry_after_s(headers))
    if status in (401, 402, 403):
        return ProviderRejected(what, code="provider_unauthorized")
    if status in (408, 425) or status >= 500:
        return ProviderUnavailable(what)
    if 400 <= status < 500:
        return ProviderRejected(what)
    return ProviderGarbage(what)


def failure_inside(provider: str, error: bytes, statuses: Mapping[str, int]) -> ConnectorError:
    """What a vendor's error inside a stream means, whose status was 200. `statuses`: by code; 500 where not named."""
    code = error_code(error[:ERROR_BYTES])
    return by_status(provider, statuses.get(code, 500), code, {})


def counted(tokens: int | None) -> int:
    """A number of tokens as a vendor reports it; 0 when it cannot be one."""
    return tokens if tokens is not None and 0 <= tokens <= MOST_TOKENS else 0


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """When to ask again, from `retry-after-ms` or `Retry-After` (seconds or a date); None: not said."""
    for name, scale in (("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - clock.wall_s()
            except (ValueError, OverflowError, TypeError):
                continue
        if seconds == seconds:  # "nan" is a number too
            return min(max(seconds, 0.0), RETRY_AFTER_MOST_S)
    return None


async def server_events(provider: str, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event, in order. Comments, names and ids are left out.

    Raises ProviderGarbage when it is no event stream, or an event is longer than `LINE_BYTES`.
    """
    kind = answer.headers.get("Content-Type", "")
    if not kind.startswith("text/event-stream"):
        raise ProviderGarbage(f"{provider}: no event stream")
    rest, data, size = b"", [], 0
    async for piece in answer.content.iter_any():
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
                size += len(line)
            elif not line and data:
                yield b"\n".join(data) if len(data) > 1 else data[0]
                data, size = [], 0
        if size + len(rest) > LINE_BYTES:
            raise ProviderGarbage(f"{provider}: an endless event")


async def read_out(answer: aiohttp.ClientResponse) -> None:
    """Take in the end of an answer whose last event is known, so that its connection serves the next call too.

    It follows at once or not at all: who has to wait for it closes the connection instead.
    """
    try:
        async with asyncio.timeout(END_S):
            while not answer.content.at_eof():
                await answer.content.readany()
    except (TimeoutError, aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError):
        pass
