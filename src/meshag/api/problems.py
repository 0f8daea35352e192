"""Errors as RFC 9457 problem+json: a stable code, what is wrong, where, and what to do."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from meshag.errors import AuthError, ConfigError, ConnectorError, LimitError, MeshError, SessionError
from meshag.sessions.problems import ConfigProblems

log = structlog.get_logger("meshag.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STATUS_BY_CODE = {
    "body_too_large": 413,
    "body_not_json": 400,
    "webhook_invalid": 400,
    "not_offered_by_transport": 409,
}

_ASKED_FOR = frozenset({ConfigError.code, "provider_unknown"})
"""A worker's answer to a claim tells an error by its code alone: with these, what was asked for cannot be."""


def problem(status: int, code: str, title: str, *, headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    """A problem+json answer, with the id of the request that it answers."""
    body = {"type": f"urn:meshag:{code}", "title": title, "status": status, "code": code, **more}
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        body["request_id"] = request_id
    return web.Response(
        status=status,
        text=json.dumps(body),
        content_type="application/problem+json",
        headers=headers,
    )


def problem_of(error: MeshError) -> web.Response:
    """The answer to an error of ours."""
    if isinstance(error, ConfigProblems):
        listed = [{"path": p.path, "message": p.message, "fix": p.fix, "code": p.code} for p in error.problems]
        status = next((_STATUS_BY_CODE[p.code] for p in error.problems if p.code in _STATUS_BY_CODE), 422)
        first = error.problems[0]
        return problem(status, first.code, str(error), path=first.path, fix=first.fix, problems=listed)
    if isinstance(error, ConfigError):
        one = {"path": error.path, "message": str(error), "fix": error.fix, "code": error.code}
        return problem(422, error.code, str(error), path=error.path, fix=error.fix, problems=[one])
    if isinstance(error, AuthError):
        return problem(401, error.code, str(error), headers={"WWW-Authenticate": 'Bearer realm="meshag"'})
    if isinstance(error, SessionError):
        return problem(404, error.code, str(error))
    if isinstance(error, LimitError):
        return problem(429, error.code, str(error), headers={"Retry-After": str(error.retry_after_s)})
    if isinstance(error, ConnectorError):
        again = {"Retry-After": "5"} if error.retryable else None
        return problem(502, error.code, str(error), headers=again)
    if error.code in _ASKED_FOR:
        return problem(422, error.code, str(error))
    if error.code == "session_changed":
        return problem(409, error.code, str(error), headers={"Retry-After": "1"})
    if error.code in _STATUS_BY_CODE:
        return problem(_STATUS_BY_CODE[error.code], error.code, str(error))
    if error.code == MeshError.code:
        return problem(500, error.code, str(error))
    return problem(503, error.code, str(error), headers={"Retry-After": "1" if error.retryable else "60"})


@web.middleware
async def as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as a problem; an unforeseen one without a word of what it was about."""
    try:
        return await handler(request)
    except MeshError as error:
        return problem_of(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status, "refused")
        return problem(error.status, code, error.reason, headers=allow)
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        return problem(400, "body_unreadable", "the body breaks off, or is not encoded as its headers say")
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            return problem(400, "body_unreadable", "the caller has gone")  # heard by nobody
        log.error("request_failed", path=request.path, error=type(error).__name__, exc_info=error)
        return problem(500, "internal", "something went wrong on our side")
