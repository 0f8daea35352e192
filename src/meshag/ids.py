"""Identifiers: made here, parsed here, nowhere else.

A session id becomes a NATS subject token, a Valkey key, a path segment and a log field. `*` or `>` inside one would
let a caller hear another, so an id is 128 random bits in lower-case base32 and is accepted only by a full match.
"""

import re
import secrets
from typing import NewType

SessionId = NewType("SessionId", str)
"""26 characters of a-z and 2-7, made by the server."""

WorkerId = NewType("WorkerId", str)
"""13 characters of a-z and 2-7, made by each worker process at its start."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_SESSION = re.compile(r"[a-z2-7]{26}")
_WORKER = re.compile(r"[a-z2-7]{13}")


def _base32(bits: int, length: int) -> str:
    value = secrets.randbits(bits)
    return "".join(_ALPHABET[value >> (5 * i) & 31] for i in range(length))


def new_session_id() -> SessionId:
    """A fresh session id: 128 random bits."""
    return SessionId(_base32(128, 26))


def new_worker_id() -> WorkerId:
    """A fresh worker id: 64 random bits."""
    return WorkerId(_base32(64, 13))


def parse_session_id(text: str) -> SessionId | None:
    """`text` as a session id, or None when it is anything but exactly one."""
    return SessionId(text) if _SESSION.fullmatch(text) else None


def parse_worker_id(text: str) -> WorkerId | None:
    """`text` as a worker id, or None when it is anything but exactly one."""
    return WorkerId(text) if _WORKER.fullmatch(text) else None
