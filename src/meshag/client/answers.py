"""What comes back: a value, or an error.

MeshError
└── ApiError              the service said no, or nothing
    ├── InvalidRequest    what was asked for cannot be (400, 406, 413, 415, 422): `path` and `fix` say what to do
    ├── NotAuthenticated  the API key is missing, wrong or revoked (401)
    ├── NotAllowed        the API key may not do this (403)
    ├── NotFound          there is no such session, or it has ended (404)
    ├── Conflict          not in this state: nobody listens, say (409)
    ├── RateLimited       too often, or more sessions than the key may have (429)
    ├── Unavailable       something that the service needs is away, or it is itself at fault (5xx)
    └── Unreachable       nothing answers, or something that is not MeshAG
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from meshag.api.schemas import Problem, Wrong
from meshag.errors import MeshError

T = TypeVar("T")


class ApiError(MeshError):
    """The service said no, or nothing. `str(error)` is for people, with every problem and its fix."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        path: str = "",
        fix: str = "",
        problems: Sequence[Wrong] = (),
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        lines = [message]
        for one in problems:
            where = f"{one.path}: " if one.path else ""
            lines.append(f"  {where}{one.message}\n    fix: {one.fix}")
        super().__init__("\n".join(lines), code=code or None, retryable=status in (0, 429, 502, 503))
        self.status = status
        """Of HTTP; 0: there was no answer."""
        self.path = path
        """The field that is wrong, in dots."""
        self.fix = fix
        """What to do about it."""
        self.problems = list(problems)
        """Everything that is wrong, where it is the body."""
        self.request_id = request_id
        """Of the request, as the service's log has it."""
        self.retry_after_s = retry_after_s
        """When the service wants to be asked again, seconds from then; None: it did not say."""


class InvalidRequest(ApiError):  # noqa: N818 - reads as what happened
    """What was asked for cannot be."""


class NotAuthenticated(ApiError):  # noqa: N818
    """The API key is missing, wrong or revoked."""


class NotAllowed(ApiError):  # noqa: N818
    """The API key may not do this."""


class NotFound(ApiError):  # noqa: N818
    """There is no such session, or it has ended."""


class Conflict(ApiError):  # noqa: N818
    """It cannot be done in this state."""


class RateLimited(ApiError):  # noqa: N818
    """Too often, or more sessions than the API key may have."""


class Unavailable(ApiError):  # noqa: N818
    """Something that the service needs is away, or it is itself at fault."""


class Unreachable(ApiError):  # noqa: N818
    """Nothing answers, or something that is not MeshAG."""

    code = "unreachable"

    def __init__(self, message: str, place: str, reason: str = "", status: int = 0) -> None:
        """`reason`: why nothing answers; empty: something does."""
        super().__init__(message, status=status)
        self.place = place
        self.reason = reason


_KINDS: dict[int, type[ApiError]] = {
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
}


def read(kind: type[T], status: int, headers: Mapping[str, str], body: bytes, place: str) -> T:
    """The value in an answer. Raises ApiError for any other than a 2xx that holds one.

    `kind`: a struct, `bytes` for the body as it is, `dict` for any JSON, NoneType for no body at all.
    """
    if not 200 <= status < 300:
        raise _error(status, headers, body, place)
    if kind is bytes:
        return body  # type: ignore[return-value]
    if kind is type(None):
        return None
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise stranger(place, status) from None


def stranger(place: str, status: int) -> Unreachable:
    """Something answers there, in another language."""
    said = f"answered {status}, and not" if status else "does not answer"
    return Unreachable(f"{place} {said} as MeshAG does: is this its transport service?", place, status=status or 1)


def silent(place: str, error: BaseException) -> Unreachable:
    """Nothing answers there."""
    reason = getattr(error, "reason", error)
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    fix = "start the mesh with `meshag up`, or set MESHAG_URL"
    return Unreachable(f"nothing answers at {place} ({said}): {fix}", place, said)


def _error(status: int, headers: Mapping[str, str], body: bytes, place: str) -> ApiError:
    try:
        told = msgspec.json.decode(body, type=Problem)
    except (msgspec.MsgspecError, UnicodeError):
        return stranger(place, status)
    default: type[ApiError] = Unavailable if status >= 500 else InvalidRequest
    return _KINDS.get(status, default)(
        f"{told.title} ({status} {told.code})",
        status=status,
        code=told.code,
        path=told.path,
        fix=told.fix,
        problems=told.problems,
        request_id=told.request_id,
        retry_after_s=_seconds({name.lower(): value for name, value in headers.items()}.get("retry-after")),
    )


def _seconds(value: Any) -> float | None:
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return None
