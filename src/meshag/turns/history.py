"""What was said, as far as it was heard: the memory that the language model answers from."""

import bisect
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from meshag.errors import WireError

Role = Literal["user", "assistant"]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_NO_BLANKS = "\u2e80"
"""From here on, scripts are written without blanks between words."""


class Exchange(msgspec.Struct, frozen=True):
    """One turn: what the caller said, and what was heard of the answer."""

    turn: int
    """The turn's number, from 1."""

    user: str
    """What the caller said; empty where the agent spoke unasked."""

    reply: str = ""
    """What the caller heard of the answer; empty when nothing."""

    interrupted: bool = False
    """Whether the caller heard less than was to be said."""

    at_ns: int = 0
    """Unix time at which the turn was over, nanoseconds."""

    user_start_ns: int = 0
    """Unix time at which the caller began to speak, nanoseconds; 0: not known, or nothing was said."""

    user_end_ns: int = 0
    """When the caller had finished."""

    reply_start_ns: int = 0
    """When the first of the answer left for the caller."""

    reply_end_ns: int = 0
    """When the caller had heard the answer, or as much of it as was heard."""


_decoder = msgspec.json.Decoder(Exchange)


def encode(exchange: Exchange) -> bytes:
    """An exchange as it is stored: JSON. Never fails; halves of surrogate pairs become U+FFFD."""
    return msgspec.json.encode(
        msgspec.structs.replace(exchange, user=_storable(exchange.user), reply=_storable(exchange.reply))
    )


def decode(data: bytes | str) -> Exchange:
    """The exchange in `data`. Raises WireError when it is none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise WireError(f"not an exchange: {type(error).__name__}, {len(data)} long") from None


def _storable(text: str) -> str:
    return _HALF_PAIR.sub("\ufffd", text)


class History:
    """A session's exchanges in the order of their turns."""

    def __init__(self, exchanges: Sequence[Exchange] = ()) -> None:
        self._exchanges: list[Exchange] = []
        for exchange in exchanges:
            self.append(exchange)

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All of them, oldest first."""
        return tuple(self._exchanges)

    def append(self, exchange: Exchange) -> None:
        """Take it in at its place; it replaces the one of the same turn."""
        at = bisect.bisect_left(self._exchanges, exchange.turn, key=lambda known: known.turn)
        if at < len(self._exchanges) and self._exchanges[at].turn == exchange.turn:
            self._exchanges[at] = exchange
        else:
            self._exchanges.insert(at, exchange)

    def messages(self, max_chars: int) -> list[tuple[Role, str]]:
        """What the model is told, oldest first: whole exchanges up to `max_chars`, the newest in any case.

        Neighbours of the same role become one message: a question that nobody answered belongs to the next one.
        """
        kept, chars = 0, 0
        for exchange in reversed(self._exchanges):
            chars += len(exchange.user) + len(exchange.reply)
            if kept and chars > max_chars:
                break
            kept += 1
        messages: list[tuple[Role, str]] = []
        for exchange in self._exchanges[len(self._exchanges) - kept :]:
            said: tuple[tuple[Role, str], ...] = (("user", exchange.user), ("assistant", exchange.reply))
            for role, text in said:
                if not text.strip():
                    continue
                if messages and messages[-1][0] == role:
                    messages[-1] = (role, f"{messages[-1][1]}\n{text}")
                else:
                    messages.append((role, text))
        return messages


def heard(chunks: Sequence[str], n: int, ms: int, chunk_ms: int) -> str:
    """The part of a reply that the caller heard: `n` whole chunks, and `ms` of the `chunk_ms` of the next one.

    A word counts when all of it was heard.
    """
    n = max(n, 0)
    whole = "".join(chunks[:n])
    if n >= len(chunks) or ms <= 0 or chunk_ms <= 0:
        return whole
    chunk = chunks[n]
    cut = min(len(chunk) * ms // chunk_ms, len(chunk))
    while 0 < cut < len(chunk) and _inside_word(chunk[cut - 1], chunk[cut]):
        cut -= 1
    return whole + (chunk if cut == len(chunk) else chunk[:cut].rstrip())


def _inside_word(before: str, after: str) -> bool:
    return not before.isspace() and not after.isspace() and before < _NO_BLANKS and after < _NO_BLANKS
