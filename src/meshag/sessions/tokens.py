"""Callers' tokens: signed, short-lived, bound to one session and to one use.

join      from creating the session: good for as long as a caller may take to connect
resume    from being connected: good for as long as the session outlives its last sign of life
"""

from typing import Literal

import jwt

from meshag import clock
from meshag.errors import AuthError
from meshag.ids import SessionId

_ALGORITHM = "HS256"
Use = Literal["join", "resume"]

_AUDIENCES: dict[Use, str] = {"join": "meshag-caller", "resume": "meshag-resume"}
LEEWAY_S = 30
"""How far the clocks of two services may differ, seconds."""


def sign(session: SessionId, secret: str, ttl_s: int, use: Use = "join") -> str:
    """A token with which a caller may join `session` within `ttl_s` seconds, or come back to it."""
    now = int(clock.wall_s())
    claims = {"sub": session, "aud": _AUDIENCES[use], "iat": now, "exp": now + ttl_s}
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def verify(token: str, session: SessionId, secret: str, use: Use = "join") -> None:
    """Raises AuthError unless `token` lets its bearer join `session`, or come back to it, now."""
    try:
        claims = jwt.decode(
            token,
            secret,
            algorithms=[_ALGORITHM],
            audience=_AUDIENCES[use],
            leeway=LEEWAY_S,
            options={"require": ["sub", "aud", "iat", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        raise AuthError(
            "the token has expired: create a session, or ask for a new token", code="token_expired"
        ) from None
    except jwt.PyJWTError:
        raise AuthError("the token is not valid", code="token_invalid") from None
    if claims["sub"] != session:
        raise AuthError("the token is for another session", code="token_invalid")
