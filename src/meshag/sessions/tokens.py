"""Callers' tokens: signed, short-lived, bound to one session."""

import jwt

from meshag import clock
from meshag.errors import AuthError
from meshag.ids import SessionId

_ALGORITHM = "HS256"
_AUDIENCE = "meshag-caller"
LEEWAY_S = 30
"""How far the clocks of two services may differ, seconds."""


def sign(session: SessionId, secret: str, ttl_s: int) -> str:
    """A token with which a caller may join `session` within `ttl_s` seconds."""
    now = int(clock.wall_s())
    claims = {"sub": session, "aud": _AUDIENCE, "iat": now, "exp": now + ttl_s}
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def verify(token: str, session: SessionId, secret: str) -> None:
    """Raises AuthError unless `token` lets its bearer join `session` now."""
    try:
        claims = jwt.decode(
            token,
            secret,
            algorithms=[_ALGORITHM],
            audience=_AUDIENCE,
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
