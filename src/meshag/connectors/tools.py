"""Calling the functions that a model asks for, over HTTP or NATS.

Whatever happens, the model gets a text to go on with: the tool's answer, or `{"error": …}` with a code. Nothing that a
tool writes beside its answer (an error's body, a header) comes to the model, and none of it to a log.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog
from yarl import URL

import meshag
from meshag.connectors.addresses import AddressRefused, Hosts, connections
from meshag.errors import BusError, OverloadError
from meshag.observe import metrics
from meshag.sessions.problems import ConfigProblems
from meshag.sessions.schemas import value_problems
from meshag.sessions.strict_json import read_json
from meshag.sessions.tools import REFERENCE, ToolConfig, ToolHttp

log = structlog.get_logger("meshag.tools")

ARGUMENTS_BYTES = 16 * 1024
"""Longer arguments are refused."""

ANSWER_BYTES = 16 * 1024
"""A longer answer is cut: the model reads all of it."""

QUERY_CHARS = 8_000
"""Longest address of a GET with its arguments."""

CUT = "… (the answer was longer and is cut here)"

AGAIN = frozenset({502, 503, 504})
"""After these, and when no connection came about or it broke, the call is made once more."""

PAUSE_S = 0.1
"""Before that."""

_KEY = re.compile(r"[!-~]{1,255}")


class Requests(Protocol):
    """Asks on NATS, as `Bus` does."""

    async def request(
        self, subject: str, data: bytes, *, timeout_ms: int, headers: dict[str, str] | None = None
    ) -> bytes: ...


class _Failure(Exception):  # noqa: N818 - reads as what happened
    """Why there is no answer."""

    def __init__(
        self, code: str, result: str = "failed", *, again: bool = False, why: str = "", **told: int | list[str]
    ) -> None:
        """`again`: it may be over in a moment. `why` is for the log, `told` for the model."""
        super().__init__(code)
        self.code, self.result, self.again, self.why, self.told = code, result, again, why, told


class Tools:
    """One worker's tools. Making it is cheap: connections are made when first used, kept warm and closed with it."""

    def __init__(self, bus: Requests, hosts: Hosts | str = "", *, environment: Mapping[str, str] = os.environ) -> None:
        """`hosts`: MESHAG_TOOL_HOSTS. Raises ConfigError for a text that cannot be read."""
        self.hosts = Hosts(hosts) if isinstance(hosts, str) else hosts
        self._bus = bus
        self._environment = environment
        self._pools: dict[bool, aiohttp.ClientSession] = {}

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        for pool in self._pools.values():
            await pool.close()

    async def call(self, tool: ToolConfig, arguments: str, *, key: str, session: str, turn: int) -> str:
        """What the model is told: the tool's answer as JSON text of at most 16 KB, or `{"error": …}`.

        `arguments`: JSON as the model wrote it. `key`: the same for the same call, also after a takeover; a tool that
        has acted on it already should only answer again. Raises nothing; may be cancelled at any await, the connection
        is closed then. Whether the tool has acted by that time is not known.
        """
        headers = {
            "Idempotency-Key": key
            if _KEY.fullmatch(key)
            else hashlib.sha256(key.encode("utf-8", "replace")).hexdigest(),
            "X-MeshAG-Session": session,
            "X-MeshAG-Turn": str(turn),
        }
        try:
            given = await asyncio.to_thread(_arguments, tool, arguments)  # a tenth of a second at worst
            async with asyncio.timeout(tool.deadline_ms / 1000):
                answer = _text(*await self._twice(tool, given, headers))
        except _Failure as error:
            failure = error
        except TimeoutError:
            failure = _Failure("tool_timeout", "timeout")
        except AddressRefused as error:
            failure = _Failure(error.code, "refused", why=str(error))
        except Exception as error:  # the conversation goes on
            failure = _Failure("tool_failed", why=type(error).__name__)
        else:
            metrics.TOOL_CALLS.labels("ok").inc()
            return answer
        metrics.TOOL_CALLS.labels(failure.result).inc()
        status = failure.told.get("status")
        log.warning("tool_failed", tool=tool.name, session=session, code=failure.code, status=status, why=failure.why)
        return msgspec.json.encode({"error": failure.code, **failure.told}).decode()

    async def _twice(self, tool: ToolConfig, given: dict[str, Any], headers: dict[str, str]) -> tuple[bytes, bool]:
        """The answer's beginning, and whether there was more."""
        try:
            return await self._once(tool, given, headers)
        except _Failure as failure:
            if not failure.again:
                raise
        await asyncio.sleep(PAUSE_S)
        return await self._once(tool, given, headers)

    async def _once(self, tool: ToolConfig, given: dict[str, Any], headers: dict[str, str]) -> tuple[bytes, bool]:
        if tool.http is not None:
            return await self._over_http(tool.http, given, headers)
        assert tool.nats is not None
        patience_ms = tool.deadline_ms + 1000  # the deadline is kept by `call`
        try:
            answer = await self._bus.request(
                tool.nats.subject, msgspec.json.encode(given), timeout_ms=patience_ms, headers=headers
            )
        except OverloadError:  # nobody listens, so nobody has acted
            raise _Failure("tool_unavailable", again=True, why="nobody listens") from None
        except BusError as error:
            raise _Failure("tool_unavailable", why=str(error)) from None
        return answer[:ANSWER_BYTES], len(answer) > ANSWER_BYTES

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def _over_http(self, http: ToolHttp, given: dict[str, Any], headers: dict[str, str]) -> tuple[bytes, bool]:
        named = self.hosts.check(http)
        sent = {name: self._filled(value) for name, value in http.headers.items()}
        sent |= {**headers, "Accept-Encoding": "identity", "User-Agent": f"meshag/{meshag.__version__}"}
        url, data = URL(http.url, encoded=True), None
        if http.method == "GET":
            url = _with_query(url, given)
        else:
            sent["Content-Type"], data = "application/json", msgspec.json.encode(given)
        try:
            async with self._pool(named).request(
                http.method, url, headers=sent, data=data, allow_redirects=False
            ) as answer:
                return await _read(answer)
        except aiohttp.ClientConnectionError as error:
            if isinstance(error, aiohttp.ClientConnectorError):  # there never was a connection
                again = not isinstance(error, aiohttp.ClientSSLError)
            else:  # it broke; a GET the client has then sent again itself
                again = http.method == "POST"
            raise _Failure("tool_unavailable", again=again, why=type(error).__name__) from None
        except aiohttp.ClientError as error:
            raise _Failure("tool_garbage", why=type(error).__name__) from None

    def _pool(self, named: bool) -> aiohttp.ClientSession:
        if named not in self._pools:
            self._pools[named] = connections(public_only=not named)
        return self._pools[named]

    def _filled(self, value: str) -> str:
        """A header's value with the variables that it names."""

        def variable(found: re.Match[str]) -> str:
            held = self._environment.get(found[1], "")
            if not held or not held.isprintable() or not held.isascii():
                raise _Failure("secret_missing", why=f"{found[1]} is not set, or holds no header's value")
            return held

        return REFERENCE.sub(variable, value)


async def _read(answer: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """The beginning of a good answer, and whether there is more."""
    if not 200 <= answer.status < 300:
        code = "tool_redirects" if 300 <= answer.status < 400 else "tool_failed"
        raise _Failure(code, again=answer.status in AGAIN, status=answer.status)
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Failure("tool_garbage", why="a compressed answer")
    found = bytearray()
    async for piece in answer.content.iter_any():
        found += piece
        if len(found) > ANSWER_BYTES:
            return bytes(found[:ANSWER_BYTES]), True
    return bytes(found), False


def _with_query(url: URL, given: dict[str, Any]) -> URL:
    """`url` with the arguments in its query. What stands there already is the session's own word and stays."""
    query: list[tuple[str, str]] = []
    for name, value in given.items():
        if name not in url.query:
            query += [(name, _word(item)) for item in (value if isinstance(value, list) else [value])]
    made = url.extend_query(query) if query else url
    if len(str(made)) > QUERY_CHARS:
        raise _invalid(["too long for a query"])
    return made


def _word(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _invalid(problems: list[str]) -> _Failure:
    return _Failure("invalid_arguments", "invalid_arguments", problems=problems)


# -- arguments and answers --------------------------------------------------------------------------------------------


def _arguments(tool: ToolConfig, text: str) -> dict[str, Any]:
    """What the model wants to be passed. Raises _Failure with what is wrong, for the model."""
    try:
        given = read_json(text or "{}", max_bytes=ARGUMENTS_BYTES)
    except ConfigProblems as error:
        raise _invalid([": ".join(filter(None, (p.path, p.message))) for p in error.problems[:5]]) from None
    if not isinstance(given, dict):
        raise _invalid(["must be a JSON object"])
    if problems := value_problems(tool.parameters, given):
        raise _invalid(problems)
    return given


def _text(answer: bytes, more: bool) -> str:
    """JSON as it came; anything else as a JSON text; what is too long is cut."""
    text = answer.decode("utf-8-sig", "ignore" if more else "replace").strip()
    if not more:
        if not text:
            return '{"ok": true}'
        try:
            msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            text = msgspec.json.encode(text).decode()
    if not more and len(text.encode()) <= ANSWER_BYTES:
        return text
    return text.encode()[: ANSWER_BYTES - len(CUT.encode())].decode("utf-8", "ignore") + CUT
