"""What can be asked, the same for both clients: each call as a value, and when it is asked again."""

import json
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from meshag import __version__, clock
from meshag.api import schemas
from meshag.client.answers import ApiError, Unreachable
from meshag.errors import ConfigError
from meshag.ids import parse_api_key

T = TypeVar("T")

URL = "http://localhost:8084"
"""Where the transport service of a mesh on this machine is."""

TIMEOUT_S = 30.0
"""A call, with all its attempts."""

FIRST_PAUSE_S = 0.25
"""Before the second attempt, at most; twice as long before each one after it. Unless the service says when."""

LONGEST_PAUSE_S = 4.0

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Where no proxy is asked."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what its answer is read as."""

    method: str
    path: str
    kind: type[T]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Whether doing it twice is as good as once: else it is sent again only where it was certainly not done."""


class Server:
    """Which mesh, and who asks."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        """None: MESHAG_URL and MESHAG_API_KEY of the environment. Raises ConfigError for what is neither."""
        self.url = (url or os.environ.get("MESHAG_URL") or URL).rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"'{self.url}' is not the address of a service", path="MESHAG_URL", fix="as in http://localhost:8084"
            )
        self.local = parts.hostname in LOOPBACK
        key = (os.environ.get("MESHAG_API_KEY", "") if api_key is None else api_key).strip()
        if key and parse_api_key(key) is None:
            raise ConfigError(
                "that is not an API key", path="MESHAG_API_KEY", fix="take what `meshag key create` has printed"
            )
        self.headers = {"User-Agent": f"meshag-python/{__version__}"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def headers_of(self, call: Call[Any]) -> dict[str, str]:
        """Everything that is sent beside the body."""
        kind = {"Content-Type": "application/json"} if call.body is not None else {}
        return {**self.headers, "Accept": "application/json", **kind, **call.headers}


class Attempts:
    """How often one call is asked, and how long that may take."""

    def __init__(self, timeout_s: float, *, retry: bool) -> None:
        self._ends_s = clock.monotonic_s() + timeout_s
        self._retry = retry
        self._pause_s = FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """Until the deadline, s; a little at least."""
        return max(0.05, self._ends_s - clock.monotonic_s())

    def pause_s(self, call: Call[Any], error: ApiError) -> float:
        """How long to wait before it is asked again, s. Raises `error` when it is not to be."""
        undone = error.status in (429, 503) or error.code == "in_progress"
        lost = isinstance(error, Unreachable) and error.status == 0 and call.repeatable
        pause_s = self._pause_s * (0.5 + random.random() / 2)
        if error.retry_after_s is not None:
            pause_s = max(pause_s, error.retry_after_s)
        if not self._retry or not (undone or lost) or clock.monotonic_s() + pause_s >= self._ends_s:
            raise error
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


class BaseClient:
    """What both clients are made with."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = TIMEOUT_S, retry: bool = True
    ) -> None:
        """`url`: the transport service; None: MESHAG_URL, else http://localhost:8084. `api_key`; None: MESHAG_API_KEY.

        `retry`: whether anything is asked again. Raises ConfigError for an address or a key that is none.
        """
        self._server = Server(url, api_key)
        self._timeout_s = timeout_s
        self._retry = retry

    @property
    def url(self) -> str:
        """The transport service."""
        return self._server.url

    def _attempts(self) -> Attempts:
        return Attempts(self._timeout_s, retry=self._retry)


# -- the calls --------------------------------------------------------------------------------------------------------


def create(request: Json | bytes | None, once: str | None) -> Call[schemas.Created]:
    """`POST /sessions/with-config`."""
    body = _json({"config": {}}) if request is None else request if isinstance(request, bytes) else _json(request)
    return Call("POST", "/sessions/with-config", schemas.Created, body, _once(once))


def create_room(request: Json, once: str | None) -> Call[schemas.Room]:
    """`POST /sessions`."""
    return Call("POST", "/sessions", schemas.Room, _json(request), _once(once))


def page(status: str | None, limit: int, cursor: str | None) -> Call[schemas.Sessions]:
    """`GET /sessions`."""
    asked = {"limit": limit, "status": status, "cursor": cursor}
    return Call("GET", f"/sessions?{urlencode({k: v for k, v in asked.items() if v is not None})}", schemas.Sessions)


def show(session: str) -> Call[schemas.Session]:
    """`GET /sessions/{id}`."""
    return Call("GET", _at(session), schemas.Session)


def change(session: str, patch: Json) -> Call[schemas.Changed]:
    """`PATCH /sessions/{id}/config`."""
    return Call("PATCH", _at(session, "/config"), schemas.Changed, _json(patch))


def extend(session: str, ttl_s: int) -> Call[schemas.Extended]:
    """`POST /sessions/{id}/extend`."""
    return Call("POST", _at(session, "/extend"), schemas.Extended, _json({"ttl_s": ttl_s}))


def token(session: str) -> Call[schemas.Token]:
    """`POST /sessions/{id}/token`."""
    return Call("POST", _at(session, "/token"), schemas.Token)


def end(session: str) -> Call[None]:
    """`DELETE /sessions/{id}`."""
    return Call("DELETE", _at(session), type(None))


def say(session: str, text: str, interrupt: bool) -> Call[schemas.Accepted]:
    """`POST /sessions/{id}/say`."""
    body = _json({"text": text, "interrupt": interrupt})
    return Call("POST", _at(session, "/say"), schemas.Accepted, body, repeatable=False)


def interrupt(session: str) -> Call[schemas.Accepted]:
    """`POST /sessions/{id}/interrupt`."""
    return Call("POST", _at(session, "/interrupt"), schemas.Accepted)


def history(session: str) -> Call[schemas.History]:
    """`GET /sessions/{id}/history`."""
    return Call("GET", _at(session, "/history"), schemas.History)


def transcript(session: str) -> Call[schemas.Transcript]:
    """`GET /sessions/{id}/transcript`."""
    return Call("GET", _at(session, "/transcript?format=json"), schemas.Transcript)


def transcript_text(session: str, form: Literal["text", "vtt"]) -> Call[bytes]:
    """The same as text."""
    return Call("GET", _at(session, f"/transcript?format={form}"), bytes)


def providers() -> Call[schemas.Providers]:
    """`GET /providers`."""
    return Call("GET", "/providers", schemas.Providers)


def switch(stage: str, name: str, state: str) -> Call[schemas.Switched]:
    """`PUT /providers/{stage}/{name}`."""
    path = f"/providers/{quote(stage, safe='')}/{quote(name, safe='')}"
    return Call("PUT", path, schemas.Switched, _json({"state": state}))


def workers() -> Call[schemas.FleetWorkers]:
    """`GET /workers`."""
    return Call("GET", "/workers", schemas.FleetWorkers)


def drain(worker: str) -> Call[schemas.FleetWorker]:
    """`POST /workers/{worker}/drain`."""
    return Call("POST", f"/workers/{quote(worker, safe='')}/drain", schemas.FleetWorker)


def watch(after: int | None, types: Sequence[str], sessions: Sequence[str]) -> str:
    """The path of `GET /ws`."""
    asked = {"after": after, "types": ",".join(types), "sessions": ",".join(sessions)}
    return f"/ws?{urlencode({k: v for k, v in asked.items() if v not in (None, '')})}"


def _at(session: str, rest: str = "") -> str:
    return f"/sessions/{quote(session, safe='')}{rest}"


def _once(name: str | None) -> dict[str, str]:
    return {"Idempotency-Key": name or secrets.token_urlsafe(24)}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
