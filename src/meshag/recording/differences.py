"""What a stage did when it was recorded against what it does now, turn by turn.

Each stage's frames are reduced to what the others, and the caller, get of them: where voice began and the turn ended,
texts, chunks, audio, what was played. Times are compared where a stage decides them, within a tolerance. What was said
at the very moment at which the answer was broken off is not compared: which of the two came first is chance.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from meshag import clock
from meshag.audio import FRAME_MS
from meshag.errors import WireError
from meshag.frames import (
    Interrupt,
    Played,
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    Speech,
    SpeechEnded,
    StageFailed,
    ToolCalled,
    TurnEnded,
    VoiceStarted,
)
from meshag.recording.tape import Moment
from meshag.turns.history import decode as decode_exchange

TOLERANCE_MS = 100
"""Decisions in time may differ by this much: five frames of caller audio, two and a half steps of playout."""

What = tuple[str, int]
"""What is compared, and its number within the turn."""


class Difference(msgspec.Struct, frozen=True):
    """Something that is not as it was."""

    turn: int
    stage: str
    """`stt`, `llm`, `tts`, `transport`, or `history`."""
    what: str
    recorded: Any
    """null: there was none."""
    replayed: Any
    """null: there is none."""


@dataclass(slots=True)
class Found:
    """One thing that a stage did in a turn."""

    value: Any
    at_ns: int
    tolerance: float = 0

    def is_like(self, other: "Found") -> bool:
        """Equal; a number within the tolerance."""
        if self.tolerance and isinstance(self.value, int | float) and isinstance(other.value, int | float):
            return abs(self.value - other.value) <= self.tolerance
        return bool(self.value == other.value)


Turn = dict[What, Found]


def _stt(moments: Iterable[Moment]) -> dict[int, Turn]:
    turns: dict[int, Turn] = defaultdict(dict)
    frames = TOLERANCE_MS / FRAME_MS
    for moment in moments:
        frame, at = moment.frame, moment.at_ns
        turn = turns[frame.turn]
        if isinstance(frame, VoiceStarted):
            turn["voice began at audio frame", 0] = Found(frame.audio_seq, at, frames)
        elif isinstance(frame, TurnEnded):
            turn["text", 0] = Found(frame.text, at)
            turn["ended at audio frame", 0] = Found(frame.audio_seq, at, frames)
            turn["speech ended, ms", 0] = Found(frame.speech_end_ns // clock.MS, at, TOLERANCE_MS)
        elif isinstance(frame, Interrupt):
            turn["interrupted it, ms", 0] = Found(at // clock.MS, at, TOLERANCE_MS)
        elif isinstance(frame, StageFailed):
            turn["failed", 0] = Found(frame.code, at)
    return turns


def _llm(moments: Iterable[Moment]) -> dict[int, Turn]:
    turns: dict[int, Turn] = defaultdict(dict)
    for moment in moments:
        frame, at = moment.frame, moment.at_ns
        turn = turns[frame.turn]
        if isinstance(frame, ReplyStarted) and frame.provider != "meshag":
            turn["answered by", 0] = Found(frame.provider, at)
        elif isinstance(frame, ReplyChunk):
            turn["filler" if frame.filler else "chunk", frame.n] = Found(frame.text, at)
        elif isinstance(frame, ToolCalled):
            turn["called", frame.n] = Found(f"{frame.name} {frame.arguments}", at)
        elif isinstance(frame, ReplyEnded):
            turn["reply ended", 0] = Found(f"{frame.reason} after {frame.chunks} chunks", at)
        elif isinstance(frame, StageFailed):
            turn["failed", 0] = Found(frame.code, at)
    return turns


def _tts(moments: Iterable[Moment]) -> dict[int, Turn]:
    turns: dict[int, Turn] = defaultdict(dict)
    audio: dict[tuple[int, int], bytearray] = {}
    takes: dict[tuple[int, int], int] = {}
    for moment in moments:
        frame, at = moment.frame, moment.at_ns
        turn = turns[frame.turn]
        if isinstance(frame, Speech):
            key = (frame.turn, frame.n)
            if frame.take != takes.get(key):
                takes[key], audio[key] = frame.take, bytearray()
            heard, start = audio[key], 2 * frame.offset
            if len(heard) < start:
                heard += bytes(start - len(heard))
            heard[start : start + len(frame.pcm)] = frame.pcm
            digest = hashlib.blake2b(heard, digest_size=4).hexdigest()
            turn["audio of chunk", frame.n] = Found(f"{len(heard) // 2} samples, {digest}", at)
            turn["voice of chunk", frame.n] = Found(frame.provider, at)
            if frame.offset == 0:
                turn["text spoken in chunk", frame.n] = Found(frame.text, at)
        elif isinstance(frame, SpeechEnded):
            if frame.last:
                turn["speech ended", 0] = Found(f"after {frame.n} chunks", at)
            else:
                turn["end of chunk", frame.n] = Found(f"{frame.samples} samples", at)
        elif isinstance(frame, StageFailed):
            turn["failed", 0] = Found(frame.code, at)
    return turns


def _transport(moments: Iterable[Moment]) -> dict[int, Turn]:
    turns: dict[int, Turn] = defaultdict(dict)
    for moment in moments:
        frame, at = moment.frame, moment.at_ns
        if isinstance(frame, Played):
            turn = turns[frame.turn]
            turn["heard to the end" if not frame.interrupted else "broken off", 0] = Found(True, at)
            turn["chunks heard", 0] = Found(frame.n, at)
            turn["heard of the next chunk, ms", 0] = Found(frame.ms, at, TOLERANCE_MS)
    return turns


REDUCE: dict[str, Callable[[Iterable[Moment]], dict[int, Turn]]] = {
    "stt": _stt,
    "llm": _llm,
    "tts": _tts,
    "transport": _transport,
}
"""What each stage's frames come to."""

NUMBERED = frozenset(
    {"chunk", "filler", "called", "audio of chunk", "voice of chunk", "text spoken in chunk", "end of chunk"}
)


def compare(
    stage: str, recorded: Iterable[Moment], replayed: Iterable[Moment], cut_ns: Callable[[int], int]
) -> list[Difference]:
    """What differs, by turn. `cut_ns`: when a turn's answer was broken off, or the recording."""
    before, now = REDUCE[stage](recorded), REDUCE[stage](replayed)
    found = []
    for turn in sorted({*before, *now} - {0}):
        broken_off_ns = cut_ns(turn)
        was, has = before.get(turn, {}), now.get(turn, {})
        for what in dict.fromkeys([*was, *has]):
            one, other = was.get(what), has.get(what)
            if one is not None and other is not None and one.is_like(other):
                continue
            newest_ns = max(item.at_ns for item in (one, other) if item is not None)
            if abs(newest_ns - broken_off_ns) <= TOLERANCE_MS * clock.MS:
                continue
            numbered = f"{what[0]} {what[1]}" if what[0] in NUMBERED else what[0]
            found.append(Difference(turn, stage, numbered, None if one is None else one.value, other and other.value))
    return found


def compare_history(recorded: dict[int, bytes], replayed: dict[int, bytes]) -> list[Difference]:
    """What the stored history would be. A turn that the recording lacks may have come too late."""
    found = []
    for turn, data in sorted(recorded.items()):
        try:
            was = decode_exchange(data)
            has = decode_exchange(replayed[turn]) if turn in replayed else None
        except WireError:
            continue
        for what in ("user", "reply", "interrupted"):
            before, now = getattr(was, what), getattr(has, what, None)
            if before != now:
                found.append(Difference(turn, "history", what, before, now))
    return found
