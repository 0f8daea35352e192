"""A recording as turns: what happened in each, when, by whose work, and how long the caller waited.

Times are the producers' own (`at_ns` of the frames), so between machines they are as exact as their clocks are alike.
Voice to voice is measured by transport alone.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from meshag import clock
from meshag.audio import FRAME_MS
from meshag.frames import (
    AnyFrame,
    AudioIn,
    ConfigChanged,
    Handover,
    Interrupt,
    OwnerChanged,
    Played,
    PlayStarted,
    ReplyChunk,
    ReplyEnded,
    ReplyStarted,
    SessionEnded,
    Speech,
    SpeechEnded,
    StageFailed,
    StageLate,
    TextIn,
    ToolAnswered,
    ToolCalled,
    Transcript,
    TurnEnded,
    TurnLikely,
    VoiceStarted,
)
from meshag.recording.tape import Moment, Tape
from meshag.turns.history import heard


class Event(msgspec.Struct, omit_defaults=True):
    """A row of the waterfall."""

    at_ms: float
    """Since the recording's first frame."""
    what: str
    detail: str = ""
    lasts_ms: float = 0.0
    """0: a moment."""
    stage: str = ""
    provider: str = ""
    worker: str = ""


class Turn(msgspec.Struct):
    """What happened from one question to the next."""

    turn: int
    """0: before the first."""
    kind: str = ""
    """`spoken`, `typed`, or empty where nothing was asked."""
    user: str = ""
    reply: str = ""
    """All that the model said."""
    heard: str | None = None
    """What the caller heard of it; None: nobody reported."""
    interrupted: bool = False
    speech_end_ms: float | None = None
    """When the caller had finished, since the recording's first frame."""
    voice_to_voice_ms: float | None = None
    """From then to the first agent audio that left."""
    events: list[Event] = []


class Timeline(msgspec.Struct):
    """A recording, ready to be shown."""

    session: str
    recorded_with: str
    recorded_at_ns: int
    ended: str
    """Why the recording ended; `cut off`: the file was."""
    pipeline: str
    length_ms: float
    turns: list[Turn]
    totals: dict[str, Any]


def timeline(tape: Tape) -> Timeline:
    """What a recording tells."""
    recording = tape.recording
    turns = _Turns(tape).build()
    request = next((one.request for one in recording.configs if isinstance(one.request, dict)), {})
    pipeline = request.get("config", {}).get("pipeline", {}).get("name", "")
    return Timeline(
        session=recording.header.session,
        recorded_with=recording.header.meshag,
        recorded_at_ns=recording.header.recorded_at_ns,
        ended="cut off" if recording.end is None else recording.end.reason,
        pipeline=str(pipeline),
        length_ms=(tape.ended_ns - tape.began_ns) / clock.MS,
        turns=turns,
        totals=_totals(tape, turns),
    )


def _totals(tape: Tape, turns: list[Turn]) -> dict[str, Any]:
    waits = sorted(turn.voice_to_voice_ms for turn in turns if turn.voice_to_voice_ms is not None)
    what = Counter(event.what for turn in turns for event in turn.events)
    spoken_ms = sum(len(frame.pcm) * 500 / frame.rate_hz for _, frame in tape.of(Speech))
    return {
        "turns": sum(turn.turn > 0 for turn in turns),
        "voice_to_voice_ms": {"p50": waits[len(waits) // 2], "max": waits[-1]} if waits else None,
        "interrupted": sum(turn.interrupted for turn in turns),
        "owners_replaced": sum(one.epoch > 1 for one in tape.owners),
        "failures": what["failed"],
        "caller_audio_ms": sum(FRAME_MS for _ in tape.of(AudioIn)),
        "agent_audio_ms": round(spoken_ms),
        "frames": dict(Counter(one.subject for one in tape.recording.frames)),
        "frames_dropped": tape.dropped,
        "frames_not_stored": sum(one.sequence == 0 for one in tape.recording.frames),
        "frames_unknown": tape.unknown,
    }


class _Turns:
    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._turns: dict[int, Turn] = {}
        self._zero_ns = min((moment.frame.at_ns for moment in tape.moments if moment.frame.at_ns), default=0)
        self._now = 0
        self._speech_ends_ns: dict[int, int] = {}
        self._spoken: dict[tuple[int, int, int], tuple[Event, float]] = {}
        self._voices: dict[int, tuple[Event, int]] = {}
        self._plays: dict[int, Event] = {}
        self._chunks: dict[int, list[str]] = {}

    def build(self) -> list[Turn]:
        for moment in self._tape.moments:
            if moment.frame.turn > self._now and not isinstance(moment.frame, AudioIn):
                self._now = moment.frame.turn
            self._take(moment)
        for turn in self._turns.values():
            turn.events.sort(key=lambda event: event.at_ms)
        return [self._turns[turn] for turn in sorted(self._turns)]

    def _turn(self, number: int) -> Turn:
        return self._turns.setdefault(number, Turn(number))

    def _ms(self, at_ns: int) -> float:
        return round((at_ns - self._zero_ns) / clock.MS, 3)

    def _add(self, moment: Moment, what: str, detail: str = "", *, provider: str = "", at_ns: int = 0) -> Event:
        frame = moment.frame
        stage = moment.stage if moment.stage != "api" else ""
        worker = self._tape.worker(stage, frame.epoch) if stage else ""
        at_ms = self._ms(at_ns or frame.at_ns or moment.at_ns)
        event = Event(at_ms, what, detail, stage=stage, provider=provider, worker=worker)
        self._turn(frame.turn or self._now).events.append(event)
        return event

    def _take(self, moment: Moment) -> None:
        frame = moment.frame
        if isinstance(frame, (VoiceStarted, Transcript, TurnLikely, TurnEnded, TextIn)):
            self._take_question(moment, frame)
        elif isinstance(frame, (ReplyStarted, ReplyChunk, ReplyEnded, ToolCalled, ToolAnswered)):
            self._take_reply(moment, frame)
        elif isinstance(frame, (Speech, SpeechEnded, PlayStarted, Played)):
            self._take_speech(moment, frame)
        elif not isinstance(frame, AudioIn):
            for what, detail in _told(frame):
                self._add(moment, what, detail)

    def _take_question(
        self, moment: Moment, frame: VoiceStarted | Transcript | TurnLikely | TurnEnded | TextIn
    ) -> None:
        turn = self._turn(frame.turn)
        if isinstance(frame, VoiceStarted):
            self._voices[frame.turn] = (self._add(moment, "caller speaks"), frame.at_ns)
            turn.kind = "spoken"
        elif isinstance(frame, Transcript):
            self._add(moment, "final" if frame.final else "interim", frame.text, provider=frame.provider)
        elif isinstance(frame, TurnLikely):
            self._add(moment, "end is likely" if frame.text else "goes on after all", frame.text)
        elif isinstance(frame, TurnEnded):
            self._speech_ends_ns[frame.turn] = frame.speech_end_ns
            turn.user, turn.speech_end_ms = frame.text, self._ms(frame.speech_end_ns)
            voice = self._voices.get(frame.turn)
            if voice is not None:
                voice[0].lasts_ms = max(0.0, round((frame.speech_end_ns - voice[1]) / clock.MS, 3))
            self._add(moment, "turn ends", "" if frame.text else "nothing to answer")
        else:
            self._speech_ends_ns[frame.turn] = frame.at_ns
            turn.kind, turn.user, turn.speech_end_ms = "typed", frame.text, self._ms(frame.at_ns)
            self._add(moment, "caller types", frame.text)

    def _take_reply(
        self, moment: Moment, frame: ReplyStarted | ReplyChunk | ReplyEnded | ToolCalled | ToolAnswered
    ) -> None:
        turn = self._turn(frame.turn)
        if isinstance(frame, ReplyStarted):
            self._add(moment, "reply begins", frame.model, provider=frame.provider)
        elif isinstance(frame, ReplyChunk):
            chunks = self._chunks.setdefault(frame.turn, [])
            chunks += [""] * (frame.n + 1 - len(chunks))
            chunks[frame.n] = "" if frame.filler else frame.text
            turn.reply = "".join(chunks)
            self._add(moment, f"{'filler' if frame.filler else 'chunk'} {frame.n}", frame.text)
        elif isinstance(frame, ReplyEnded):
            self._add(moment, "reply ends", frame.reason)
        elif isinstance(frame, ToolCalled):
            self._add(moment, f"calls {frame.name}", frame.arguments)
        else:
            self._add(moment, f"call {frame.n} answered", frame.text)

    def _take_speech(self, moment: Moment, frame: Speech | SpeechEnded | PlayStarted | Played) -> None:
        turn = self._turn(frame.turn)
        if isinstance(frame, Speech):
            key = (frame.turn, frame.n, frame.take)
            event, audio_ms = self._spoken.get(key) or (
                self._add(moment, f"speech {frame.n}", provider=frame.provider),
                0.0,
            )
            audio_ms += len(frame.pcm) * 500 / frame.rate_hz
            event.lasts_ms = max(0.0, self._ms(frame.at_ns) - event.at_ms)
            event.detail = f"{audio_ms:.0f} ms of audio"
            self._spoken[key] = (event, audio_ms)
        elif isinstance(frame, PlayStarted):
            self._plays[frame.turn] = self._add(moment, "plays")
            ended_ns = self._speech_ends_ns.get(frame.turn)
            if ended_ns is not None:
                turn.voice_to_voice_ms = round((frame.at_ns - ended_ns) / clock.MS, 3)
        elif isinstance(frame, Played):
            playing = self._plays.get(frame.turn)
            if playing is not None:
                playing.lasts_ms = max(0.0, self._ms(frame.at_ns) - playing.at_ms)
            turn.interrupted = frame.interrupted
            chunks = self._chunks.get(frame.turn, [])
            turn.heard = heard(chunks, frame.n, frame.ms, frame.chunk_ms) if frame.interrupted else turn.reply
            detail = f"after {frame.n} chunks and {frame.ms} ms" if frame.interrupted else "to the end"
            self._add(moment, "falls silent" if frame.interrupted else "played", detail)


def _told(frame: AnyFrame) -> Iterator[tuple[str, str]]:
    if isinstance(frame, Interrupt):
        yield "interrupt", f"by {'the caller' if frame.source == 'transport' else 'voice'}"
    elif isinstance(frame, OwnerChanged):
        yield "owner", f"epoch {frame.epoch}"
    elif isinstance(frame, Handover):
        yield "hands over", f"{frame.stage}: {frame.worker} leaves"
    elif isinstance(frame, StageFailed):
        yield "failed", f"{frame.stage}: {frame.code}"
    elif isinstance(frame, StageLate):
        yield "late", frame.stage
    elif isinstance(frame, ConfigChanged):
        yield "configuration", f"version {frame.version}"
    elif isinstance(frame, SessionEnded):
        yield "session ends", frame.reason
