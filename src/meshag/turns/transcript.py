"""What was said in a session, with times: for people, for programs, and as subtitles (WebVTT)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from meshag import clock
from meshag.turns.history import Exchange

MS_PER_CHAR = 60
"""How long a character takes to say, about: where it was not noted when somebody began."""

LEAST_MS = 500
"""Nobody says anything faster."""

_VOICES = {"caller": "Caller", "agent": "Agent"}


class Line(msgspec.Struct, frozen=True):
    """Something that was said."""

    turn: int
    """The turn's number, from 1."""

    speaker: Literal["caller", "agent"]

    text: str
    """What the caller said, or what the caller heard of the agent."""

    start_ms: int
    """From the session's creation."""

    end_ms: int

    interrupted: bool = False
    """The agent was to say more."""


def lines(exchanges: Iterable[Exchange], started_ns: int) -> list[Line]:
    """Everything that was said, in the order in which it began. `started_ns`: Unix time of the session's creation."""
    found: list[Line] = []
    for one in exchanges:
        if one.user.strip():
            end_ns = one.user_end_ns or one.reply_start_ns or one.at_ns
            start_ns = one.user_start_ns or end_ns - _length_ns(one.user)
            if start_ns == end_ns:  # typed
                end_ns += _length_ns(one.user)
            found.append(_line(one, "caller", one.user, start_ns - started_ns, end_ns - started_ns))
        if one.reply.strip():
            end_ns = one.reply_end_ns or one.at_ns
            start_ns = one.reply_start_ns or max(one.user_end_ns, end_ns - _length_ns(one.reply))
            line = _line(one, "agent", one.reply, start_ns - started_ns, end_ns - started_ns)
            found.append(msgspec.structs.replace(line, interrupted=one.interrupted))
    return sorted(found, key=lambda line: line.start_ms)


def as_text(said: Sequence[Line]) -> str:
    """A line for each: `[00:00:01] Caller: Where is my order?`"""
    return "".join(
        f"[{_time(line.start_ms).partition('.')[0]}] {_VOICES[line.speaker]}: {_one_line(line.text)}"
        f"{' [interrupted]' if line.interrupted else ''}\n"
        for line in said
    )


def as_vtt(said: Sequence[Line]) -> str:
    """WebVTT: a cue for each, with who speaks."""
    cues = [
        f"{number}\n{_time(line.start_ms)} --> {_time(line.end_ms)}\n<v {_VOICES[line.speaker]}>{_escaped(line.text)}\n"
        for number, line in enumerate(said, 1)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _line(one: Exchange, speaker: Literal["caller", "agent"], text: str, start_ns: int, end_ns: int) -> Line:
    start_ms = max(0, start_ns // clock.MS)
    return Line(one.turn, speaker, text.strip(), start_ms, max(start_ms + 1, end_ns // clock.MS))


def _length_ns(text: str) -> int:
    return max(LEAST_MS, MS_PER_CHAR * len(text)) * clock.MS


def _time(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """A cue's text ends at an empty line, and `-->` in it would begin another cue."""
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
