"""Answers that no vendor would give: good ones that were damaged, and noise.

Everything follows from a number, so that what went wrong once can be looked at again.
"""

import asyncio
import os
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec

EXAMPLES = int(os.environ.get("MESHAG_FUZZ", "1500"))
"""How many a test tries, the slow ones a part of it. `make fuzz` asks for 100,000."""

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, -1e300, 2**63, 10**25, "", " ", "x" * 300, "\x00", "😀", "[DONE]", [], {}, [[]],
    {"": {}}, [None], {"error": {"code": "server_error"}}, {"type": "error"}, -(2**40), "null", ["a"] * 50,
]  # fmt: skip

ODD_BYTES = [
    b"", b"\n", b"\r\n\r\n", b"\x00", b"\xff\xfe", b"\xed\xa0\xbd", b"NaN", b"1e999", b"\\ud83d", b"{", b"}", b'"""',
    b"[" * 200, b"9" * 5000, b"data:", b"data: [DONE]\n\n", b"data: null\n\n", b"event: error\n", b": ping\n\n",
    b"0\r\n\r\n",
]  # fmt: skip


def odd_json(rng: random.Random, value: Any) -> Any:
    """`value` with something in it replaced, left out or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: odd_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:at] + [value[at]] * rng.choice((0, 2, 40)) + value[at + 1 :]
        return [*value[:at], odd_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD_VALUES)


def odd_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes flipped, cut out, repeated or put in."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        way = rng.randrange(6)
        if way == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif way == 1:
            data = data[:at] + data[end:]
        elif way == 2:
            data = data[:end] + data[at : at + 2000] + data[end:]
        elif way == 3:
            data = data[:at] + rng.choice(ODD_BYTES) + data[at:]
        elif way == 4:
            data = data[:at]
        else:
            data = data[:at] + rng.randbytes(rng.randrange(40)) + data[at:]
    return data


def odd_events(rng: random.Random, events: list[bytes]) -> list[bytes]:
    """Server-sent events (each as it goes over the wire) with some damaged, lost, repeated or in another order."""
    events = list(events)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not events:
            break
        at = rng.randrange(len(events))
        way = rng.randrange(6)
        if way <= 2:
            head, mark, data = events[at].partition(b"data: ")
            try:
                value = msgspec.json.decode(data)
            except (msgspec.MsgspecError, UnicodeError):
                events[at] = odd_bytes(rng, events[at])
            else:
                events[at] = head + mark + msgspec.json.encode(odd_json(rng, value)) + b"\n\n"
        elif way == 3:
            del events[at]
        elif way == 4:
            events.insert(rng.randrange(len(events) + 1), events[at])
        else:
            events[at] = odd_bytes(rng, events[at])
    return events


def odd_http(rng: random.Random, body: bytes, content_type: str) -> bytes:
    """A whole HTTP answer around `body`. Mostly the HTTP itself is sound."""
    status = rng.choice((200,) * 16 + (201, 204, 301, 400, 401, 404, 429, 500, 529))
    kind = content_type if rng.random() < 0.95 else rng.choice(("text/html", "", "application/json", "\x00"))
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n"
    if rng.random() < 0.05:
        head += rng.choice(("Retry-After: nan\r\n", "Retry-After: -5\r\n", "retry-after-ms: 1e400\r\n", "X: \x01\r\n"))
    framing = rng.randrange(10)
    if framing < 5:
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in split(rng, body)) + b"0\r\n\r\n"
        answer = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + body
    elif framing < 8:
        answer = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        answer = head.encode() + b"Connection: close\r\n\r\n" + body
    return odd_bytes(rng, answer) if rng.random() < 0.1 else answer


def split(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` in a few pieces, none of them empty."""
    cuts = sorted({rng.randrange(len(data) + 1) for _ in range(rng.randrange(5))} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(cuts)]


class Babbler:
    """A server that answers every request with the bytes that `answer` gives, and hangs up."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer
        self.url = ""

    async def __aenter__(self) -> "Babbler":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"content-length: " in head:
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            writer.write(self._answer())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
