"""What happened in a run, one JSON object a line, in the order in which it was noticed.

Every line has `what` and `at_ms`: Unix time, milliseconds. The kinds:

run         seed, seconds, mutant: what was asked for
session     session, caller: a caller has a new session
asked       session, number, act, spoken: a question was put; `act` says what the caller then does
heard       session, number, part, first, count: so many pieces of 20 ms; number 0: it bridged a wait; -1: noise
event       session, and the message as the caller got it
stored      session, turns: what `GET /sessions/{id}/history` said before the session was ended
frame       session, subject, seq, epoch, turn, kind, stored_ms, stored: of the journal, from the recording
unanswered  session, number: the caller gave up waiting
fault       id, kind, stage, worker, sessions, until_ms: until it was mended; `sessions`: of that worker
metrics     service, pid, values: what `/metrics` said, where it had changed
left        keys, frames, owned, processes: what was found after the end of everything
recording   session, path
"""

import threading
from pathlib import Path
from typing import Any

import msgspec

from meshag import clock

Line = dict[str, Any]

_encoder = msgspec.json.Encoder()


class History:
    """Writes a run's history. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._lock = threading.Lock()

    def note(self, what: str, *, at_ms: float | None = None, **fields: Any) -> None:
        """Add a line; `at_ms`: now unless it is given."""
        line = {"what": what, "at_ms": round(now_ms() if at_ms is None else at_ms, 3), **fields}
        with self._lock:
            if not self._file.closed:
                self._file.write(_encoder.encode(line) + b"\n")

    def close(self) -> None:
        """Nothing more is written. Idempotent."""
        with self._lock:
            self._file.close()


def now_ms() -> float:
    """Unix time, milliseconds."""
    return clock.wall_ns() / clock.MS


def read(path: Path) -> list[Line]:
    """A history's lines."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
