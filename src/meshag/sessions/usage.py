"""What a session has cost and how quick it was, counted by those who do the work.

    session:<id>:usage    hash: counters by name, `latency/<turn>` (JSON, ms by hop), `turn/<stage>` (the last counted)

Each stage counts a turn once, when it is over, and not again when another worker has taken it over. What a worker that
died had not counted yet is lost, and so are the tokens of a reply that was interrupted: models tell them at the end.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from valkey.asyncio import Valkey

from meshag.ids import SessionId
from meshag.subjects import Stage

HEARD_MS = "heard//audio_ms"
"""Caller audio that arrived."""

TOOL_CALLS = "tools//calls"
"""Functions called."""

HOPS = ("stt", "llm", "tts", "transport")
"""Where the time of a turn goes, one after the other, see `Laps`."""

_ADD = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local turn = tonumber(ARGV[2])
if turn > 0 then
  local place = 'turn/' .. ARGV[1]
  if turn <= tonumber(redis.call('HGET', KEYS[2], place) or 0) then return 0 end
  redis.call('HSET', KEYS[2], place, ARGV[2])
end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], 'latency/' .. ARGV[2], ARGV[4]) end
for i = 5, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""


def tokens(provider: str, direction: str) -> str:
    """The counter of tokens that a provider's models read (`in`) or wrote (`out`)."""
    return f"llm/{provider}/{'input' if direction == 'in' else 'output'}_tokens"


def characters(provider: str) -> str:
    """The counter of characters that a provider's voice was given."""
    return f"tts/{provider}/characters"


def recognised_ms(provider: str) -> str:
    """The counter of audio that a recogniser was given, ms."""
    return f"stt/{provider}/audio_ms"


class Usage:
    """The counters in Valkey. Every call may raise StoreError."""

    def __init__(self, client: Valkey, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """`call` awaits an answer of `client` and raises StoreError when there is none."""
        self._client = client
        self._call = call
        self._add = client.register_script(_ADD)

    async def add(
        self,
        session: SessionId,
        stage: Stage,
        turn: int,
        counts: Mapping[str, int],
        latency_ms: Mapping[str, int],
        ttl_s: int,
    ) -> None:
        """Count what a stage's part of a turn has cost; turn 0: of none. Does nothing for a session that is gone."""
        laps = msgspec.json.encode(latency_ms).decode() if latency_ms else ""
        fields = [part for name, count in counts.items() for part in (name, count)]
        keys = [f"session:{session}:config", key(session)]
        await self._call(self._add(keys=keys, args=[stage, turn, ttl_s, laps, *fields]))

    async def read(self, session: SessionId) -> dict[str, Any]:
        """Everything that was counted, as `GET /sessions/{id}` tells it: `turns`, `latency_ms` and `usage`."""
        return told(await self._call(self._client.hgetall(key(session))))


def key(session: SessionId) -> str:
    """Where a session's counters are."""
    return f"session:{session}:usage"


def told(stored: Mapping[str, str]) -> dict[str, Any]:
    """The counters as they are told."""
    found: dict[str, dict[str, dict[str, int]]] = {stage: defaultdict(dict) for stage in ("stt", "llm", "tts")}
    laps: dict[int, dict[str, int]] = {}
    for name, value in stored.items():
        kind, _, rest = name.partition("/")
        provider, _, counter = rest.rpartition("/")
        if kind == "latency":
            laps[int(rest)] = msgspec.json.decode(value, type=dict[str, int])
        elif kind in found:
            found[kind][provider][counter] = int(value)
    marks = [int(value) for name, value in stored.items() if name.startswith("turn/")]
    newest = [laps[turn] for turn in sorted(laps)]
    return {
        "turns": max(marks, default=0),
        "latency_ms": {hop: _summary([lap[hop] for lap in newest if hop in lap]) for hop in ("voice_to_voice", *HOPS)},
        "usage": {
            "heard_ms": int(stored.get(HEARD_MS, 0)),
            "tool_calls": int(stored.get(TOOL_CALLS, 0)),
            **{stage: {name: dict(counts) for name, counts in by.items()} for stage, by in found.items()},
        },
    }


def _summary(values: Sequence[int]) -> dict[str, int | None]:
    """`values` from the oldest to the newest."""
    if not values:
        return {"turns": 0, "last": None, "p50": None, "p95": None}
    ranked = sorted(values)

    def at(part: float) -> int:
        return ranked[math.ceil(part * len(ranked)) - 1]

    return {"turns": len(values), "last": values[-1], "p50": at(0.5), "p95": at(0.95)}
