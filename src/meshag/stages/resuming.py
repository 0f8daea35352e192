"""Where a session's caller was when the connection broke: read from the journal, and from the caller's own account.

look_back    what the former transport had told and played, what was said meanwhile
catch_up     a new playout goes through what the former one had played, up to the caller's ear
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meshag import clock, subjects
from meshag.bus.inlet import Inlet
from meshag.bus.journal import Journal
from meshag.bus.streams import MEDIA_AGE_S
from meshag.frames import (
    AnyFrame,
    AudioIn,
    Hush,
    Interrupt,
    Played,
    PlayStarted,
    Say,
    Speech,
    SpeechEnded,
)
from meshag.ids import SessionId
from meshag.stages.playout import LEAD_MS, Playout
from meshag.subjects import Stage

TOLD: tuple[Stage, ...] = ("stt", "llm", "tts")
"""The stages whose words a caller is told, in the order in which a turn passes them."""

Spoken = Speech | SpeechEnded

MS_HZ = 8_000
"""Sample rate where only the length of what was heard counts."""

NOWHERE = "-".join("0.0" for _ in TOLD)
"""The place before a session's first event."""

_PLACE = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}(?:-[0-9]{1,9}\.[0-9]{1,9}){2}")

Places = dict[Stage, tuple[int, int]]
"""By stage the epoch and the number of the frame that comes next."""


@dataclass(frozen=True, slots=True)
class Left:
    """Where a caller's former connection had come to, as the caller says."""

    at: str
    """The last `at` that it was told; empty: none."""

    turn: int | None = None
    """The turn whose answer it was hearing; 0: of none; None: it does not say, and is believed to have heard what was
    played until the connection broke."""

    heard_ms: int = 0
    """How much of that answer had come."""


def place_of(inlets: Mapping[Stage, Inlet | None]) -> str:
    """Where the conversation stands, for the caller to give back."""
    found = (inlets.get(stage) for stage in TOLD)
    return "-".join(f"{inlet.epoch}.{inlet.next}" if inlet else "0.0" for inlet in found)


def parse_place(text: str) -> Places | None:
    """What `place_of` has told; None for anything else."""
    if not _PLACE.fullmatch(text):
        return None
    numbers = ([int(number) for number in part.split(".")] for part in text.split("-"))
    return {stage: (epoch, seq) for stage, (epoch, seq) in zip(TOLD, numbers, strict=True)}


@dataclass(slots=True)
class Past:
    """What the journal tells of the calls before this one."""

    over: int = 0
    """The last turn whose answer was heard to its end, or cut off."""

    silenced: int = 0
    """The last turn that was interrupted."""

    silenced_ns: int = 0
    """When, Unix time."""

    begun: set[int] = field(default_factory=set)
    """Turns of whose answers something was heard."""

    reported: set[int] = field(default_factory=set)
    """Turns of which it was told how much was heard."""

    typed: int = 0
    """The last turn that was typed, or begun by the API."""

    alive_ns: int = 0
    """When the former caller was last heard, Unix time; 0: never."""

    frames: dict[Stage, list[AnyFrame]] = field(default_factory=dict)

    said: set[str] = field(default_factory=set)
    """Announcements that were made, by id."""

    to_say: list[Say] = field(default_factory=list)
    """Those that still wait."""

    def told(self) -> Iterator[tuple[Stage, AnyFrame]]:
        """What the stages said, each in its order, and no answer before what it answers."""
        ranked = []
        for rank, stage in enumerate(TOLD):
            turn = 0
            for frame in self.frames.get(stage, []):
                turn = max(turn, frame.turn)
                if not isinstance(frame, (Speech, SpeechEnded)):
                    ranked.append((turn, rank, stage, frame))
        ranked.sort(key=lambda entry: entry[:2])
        return ((stage, frame) for _, _, stage, frame in ranked)

    def speech(self, first_turn: int) -> list[Spoken]:
        """The agent audio from a turn on, without what was interrupted."""
        return [frame for frame in self._spoken() if frame.turn >= first_turn and frame.turn > self.silenced]

    def cut_off(self, left: Left | None) -> Played | None:
        """How far an answer was heard that was interrupted while nobody was left to tell; None: that was told."""
        speech = [frame for frame in self._spoken() if frame.turn == self.silenced]
        if not speech or self.silenced in self.reported or self.silenced <= self.over:
            return None
        heard = Playout(MS_HZ)
        catch_up(heard, MS_HZ, speech, left if left and left.turn == self.silenced else None, self.silenced_ns)
        return heard.interrupt(self.silenced)

    def _spoken(self) -> Iterator[Spoken]:
        return (frame for frame in self.frames.get("tts", []) if isinstance(frame, (Speech, SpeechEnded)))

    def is_stale(self, turn: int) -> bool:
        """Whether nothing has been said in a turn for so long that its audio is gone."""
        since_ns = clock.wall_ns() - MEDIA_AGE_S * 1000 * clock.MS
        return not any(frame.turn == turn and frame.at_ns > since_ns for said in self.frames.values() for frame in said)


async def look_back(journal: Journal, session: SessionId, stages: list[Stage], control: list[AnyFrame]) -> Past:
    """Read what was. `control`: the session's control frames, oldest first. Raises BusError."""
    past = Past()
    hushed = 0
    for number, frame in enumerate(control):
        if isinstance(frame, Played):
            past.over = max(past.over, frame.turn)
            past.reported.add(frame.turn)
        elif isinstance(frame, Interrupt):
            if frame.turn > past.silenced:
                past.silenced, past.silenced_ns = frame.turn, frame.at_ns
        elif isinstance(frame, PlayStarted):
            past.begun.add(frame.turn)
        elif isinstance(frame, Hush):
            hushed = number
    of_stages = (journal.read(subjects.output(stage, session)) for stage in stages)
    written, *spoken = await asyncio.gather(journal.read(subjects.text_input(session)), *of_stages)
    heard = await journal.last(subjects.audio_input(session))
    past.frames = dict(zip(stages, spoken, strict=True))
    past.typed = max((frame.turn for frame in written), default=0)
    past.said = {frame.id for frame in written if isinstance(frame, Say)}
    since_ns = clock.wall_ns() - MEDIA_AGE_S * 1000 * clock.MS
    for number, frame in enumerate(control):
        if isinstance(frame, Say) and number >= hushed and frame.at_ns > since_ns and frame.id not in past.said:
            past.to_say.append(frame)
    if isinstance(heard, AudioIn):
        past.alive_ns = heard.at_ns
    return past


def catch_up(
    playout: Playout, rate_hz: int, speech: list[Spoken], left: Left | None, alive_ns: int
) -> tuple[list[Played], int]:
    """Bring a fresh playout to where the former one had come, and give it the rest.

    It goes through the same pieces in the same time, so that what the former one dropped of a voice that broke off is
    dropped here, too. `left`: how far the caller had heard; where that is not told, as far as was played until it was
    last heard itself, `alive_ns`, or till now where it was not. Returns the answers that were heard to their end, and
    how much of the one under way was, ms.
    """
    if not speech:
        return [], 0
    first, waiting = speech[0], deque(speech)
    now_ns = first.at_ns
    until_ns = alive_ns if alive_ns >= first.at_ns else clock.wall_ns()
    left_bytes = None
    if first.n or (isinstance(first, Speech) and first.offset):  # longer than the journal: its beginning is gone
        now_ns += LEAD_MS * clock.MS
        before_ms = first.offset * 1000 // first.rate_hz if isinstance(first, Speech) else 0
        playout.start_at(first.turn, first.n, before_ms)
    elif left is not None and left.turn is not None:
        mine = first.turn == left.turn
        left_bytes = 2 * (rate_hz * left.heard_ms // 1000) if mine else 0
        if mine:
            playout.start_at(first.turn, 0, 0)
    over: list[Played] = []
    taken_bytes = 0
    while True:
        while waiting and (not playout.playing or waiting[0].at_ns <= now_ns):
            frame = waiting.popleft()
            now_ns = max(now_ns, frame.at_ns)
            _give(playout, frame)
        if not playout.playing or (now_ns >= until_ns if left_bytes is None else left_bytes < 2):
            break
        pcm, done = playout.take(left_bytes and min(left_bytes, playout.step_bytes))
        taken_bytes = 0 if done else taken_bytes + len(pcm)
        over += done
        if left_bytes is not None:
            left_bytes = 0 if done else left_bytes - len(pcm)
        now_ns += len(pcm) * 500_000_000 // rate_hz
    for frame in waiting:
        _give(playout, frame)
    return over, taken_bytes * 500 // rate_hz


def _give(playout: Playout, frame: Spoken) -> None:
    if isinstance(frame, Speech):
        playout.add(frame)
    else:
        playout.end(frame)
