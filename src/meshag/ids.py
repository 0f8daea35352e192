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

KeyId = NewType("KeyId", str)
"""13 characters of a-z and 2-7: the public half of an API key."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_SESSION = re.compile(r"[a-z2-7]{26}")
_WORKER = re.compile(r"[a-z2-7]{13}")
_API_KEY = re.compile(r"mesh_([a-z2-7]{13})_([a-z2-7]{52})")


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


def new_api_key() -> tuple[KeyId, str]:
    """A fresh API key: its id, 64 random bits, and its secret, 256."""
    return KeyId(_base32(64, 13)), _base32(256, 52)


def api_key(key: KeyId, secret: str) -> str:
    """An API key as it is sent: `mesh_<id>_<secret>`."""
    return f"mesh_{key}_{secret}"


def parse_api_key(text: str) -> tuple[KeyId, str] | None:
    """The id and the secret in an API key, or None when `text` is anything but exactly one."""
    found = _API_KEY.fullmatch(text)
    return (KeyId(found[1]), found[2]) if found else None


def parse_key_id(text: str) -> KeyId | None:
    """`text` as the id of an API key, or None when it is anything but exactly one."""
    return KeyId(text) if _WORKER.fullmatch(text) else None
