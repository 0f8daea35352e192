"""Where the time of a turn goes, from the end of the caller's speech to the first of the answer.

Each hop by the clock of the one who did it: between machines they are as exact as their clocks agree.
"""

from meshag import clock
from meshag.frames import AnyFrame, ReplyChunk, Speech, TurnEnded

KEPT = 8
"""Turns that are looked at, at the same time."""


class Laps:
    """A call's turns that are being answered."""

    def __init__(self) -> None:
        self._marks_ns: dict[int, dict[str, int]] = {}

    def note(self, frame: AnyFrame) -> None:
        """A frame that passes by: the first of its kind in its turn counts."""
        if isinstance(frame, TurnEnded) and frame.text:
            self._mark(frame.turn, "spoken", frame.speech_end_ns)
            self._mark(frame.turn, "stt", frame.at_ns)
        elif isinstance(frame, ReplyChunk) and not frame.filler:
            self._mark(frame.turn, "llm", frame.at_ns)
        elif isinstance(frame, Speech):
            self._mark(frame.turn, "tts", frame.at_ns)

    def typed(self, turn: int) -> None:
        """The caller has typed a turn."""
        self._mark(turn, "spoken", clock.wall_ns())

    def heard(self, turn: int) -> dict[str, int]:
        """The first of the answer leaves now: milliseconds by hop, empty for an answer to nothing. Asked once."""
        marks_ns = self._marks_ns.pop(turn, {})
        if "spoken" not in marks_ns:
            return {}
        now_ns = clock.wall_ns()
        told = {"voice_to_voice": _ms(now_ns - marks_ns["spoken"])}
        before_ns = marks_ns.pop("spoken")
        for hop in ("stt", "llm", "tts"):
            if hop in marks_ns:
                told[hop] = _ms(marks_ns[hop] - before_ns)
                before_ns = marks_ns[hop]
        return told | {"transport": _ms(now_ns - before_ns)}

    def _mark(self, turn: int, hop: str, at_ns: int) -> None:
        self._marks_ns.setdefault(turn, {}).setdefault(hop, at_ns)
        while len(self._marks_ns) > KEPT:
            del self._marks_ns[min(self._marks_ns)]


def _ms(ns: int) -> int:
    return max(0, ns) // clock.MS
