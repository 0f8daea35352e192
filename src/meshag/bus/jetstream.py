"""JetStream's own questions and answers (`$JS.API.…`), and what it writes beside the messages that it delivers."""

from typing import Any, NamedTuple

import msgspec

from meshag.bus.connection import Bus
from meshag.errors import BusError, OverloadError


class Place(NamedTuple):
    """Where a delivered message stands."""

    sequence: int
    """Its number in the stream."""

    delivery: int
    """Counts what this consumer was given, from 1."""


class Bounds(NamedTuple):
    """What a stream holds. Empty: `first` is the number that the next message will have."""

    first: int
    last: int


async def ask(bus: Bus, api: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """One exchange with JetStream. Raises BusError when it does not answer, or refuses."""
    data = msgspec.json.encode(question) if question is not None else b""
    try:
        answer = msgspec.json.decode(await bus.request(f"$JS.API.{api}", data, timeout_ms=2000))
    except OverloadError:
        raise BusError("JetStream does not answer") from None
    except msgspec.MsgspecError:
        raise BusError(f"JetStream's answer to {api} is no JSON") from None
    if error := answer.get("error"):
        raise BusError(f"JetStream refuses {api}: {error.get('description', '')} ({error.get('err_code', 0)})")
    found: dict[str, Any] = answer
    return found


async def bounds(bus: Bus, stream: str) -> Bounds:
    """What a stream holds now. Raises BusError."""
    state = (await ask(bus, f"STREAM.INFO.{stream}"))["state"]
    return Bounds(max(1, state["first_seq"]), state["last_seq"])


def place_of(reply: str) -> Place | None:
    """Reads `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<times>.<sequence>.<delivery>.<time>.<pending>[.<…>]`."""
    words = reply.split(".")
    if len(words) < 9 or words[:2] != ["$JS", "ACK"]:
        return None
    at = 5 if len(words) == 9 else 7
    return Place(int(words[at]), int(words[at + 1]))
