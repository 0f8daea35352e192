"""Function calls as models stream them: pieced together, bounded, and handed out when they are complete."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import msgspec

from meshag.connectors.contracts import Thinking, ToolCall
from meshag.errors import ProviderGarbage

ARGUMENTS_BYTES = 64 * 1024
"""The arguments of a call are no longer."""

MOST_CALLS = 32
"""A reply makes no more calls."""

NAME_CHARS = 256
"""No name is longer, neither a function's nor a call's."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")


class _Open:
    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.pieces: list[str] = []
        self.size = 0

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


class OpenCalls:
    """The calls of one reply that are not complete yet. `key`: how the vendor numbers what it streams."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._waiting: list[_Open] = []
        self._latest: dict[int, _Open] = {}
        self._begun = 0

    def begin(self, key: int, call_id: str, name: str) -> None:
        """A call begins; one of the same key before it gets nothing more. Raises ProviderGarbage."""
        self._begun += 1
        if not name or max(len(name), len(call_id)) > NAME_CHARS:
            raise ProviderGarbage(f"{self._provider}: a function call without a proper name")
        if self._begun > MOST_CALLS:
            raise ProviderGarbage(f"{self._provider}: function calls without end")
        call = self._latest[key] = _Open(call_id or f"call_{uuid4().hex[:24]}", name)
        self._waiting.append(call)

    def write(self, key: int, piece: str) -> None:
        """More of a call's arguments. Raises ProviderGarbage."""
        call = self._latest.get(key)
        if call is None:
            if not piece.strip():
                return  # blanks after the end
            raise ProviderGarbage(f"{self._provider}: arguments of no function call")
        call.size += len(piece.encode("utf-8", "replace"))
        if call.size > ARGUMENTS_BYTES:
            raise ProviderGarbage(f"{self._provider}: arguments without end")
        call.pieces.append(piece)

    def id_of(self, key: int) -> str | None:
        """The name of the call of this key; None when none has begun."""
        call = self._latest.get(key)
        return None if call is None else call.id

    def complete(self) -> list[ToolCall]:
        """Those whose arguments are all there, in their order, each once."""
        done = 0
        while done < len(self._waiting) and as_object(self._waiting[done].arguments) is not None:
            done += 1
        return self._take(done)

    def rest(self, *, cut: bool) -> list[ToolCall]:
        """What is left at the end of the reply. `cut`: it was too long, so that broken arguments are no call."""
        if cut:
            self._waiting = [call for call in self._waiting if as_object(call.arguments) is not None]
        return self._take(len(self._waiting))

    def _take(self, count: int) -> list[ToolCall]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        for key, call in list(self._latest.items()):
            if call in taken:
                del self._latest[key]
        return [ToolCall(call.id, call.name, call.arguments) for call in taken]


def thinking(piece: str | None) -> list[Thinking]:
    """The sign of life in a piece of arguments or of a thought; none in a blank one: some models never stop those."""
    return [Thinking(len(piece))] if piece and not piece.isspace() else []


def as_object(arguments: str) -> dict[str, Any] | None:
    """The JSON object in a call's arguments; None when they are none."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def id_for_all(call_id: str) -> str:
    """A call's name as every vendor takes it: the call may have been another vendor's."""
    if _ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode('utf-8', 'replace')).hexdigest()[:24]}"


def schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a function's arguments as every vendor takes it."""
    return {"type": "object", "properties": {}, **parameters}
