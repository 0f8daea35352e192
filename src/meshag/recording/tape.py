"""A recording as those heard it who were there: decoded, in order, each frame once, none of a replaced owner."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from meshag.bus.journal import source_of
from meshag.errors import ConfigError
from meshag.frames import AnyFrame, AudioIn, Interrupt, OwnerChanged, Speech, TextIn, TurnEnded
from meshag.ids import SessionId, parse_session_id
from meshag.recording.file import AUDIO_INPUT, CONTROL, TEXT_INPUT, Recording
from meshag.sessions.config import SessionConfig, SessionRequest, hears, stages_of
from meshag.sessions.tools import STORED
from meshag.subjects import STAGES, Stage

F = TypeVar("F", bound=AnyFrame)


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame, and when the server stored it."""

    at_ns: int
    kind: str
    """Its subject without the session."""
    frame: AnyFrame

    @property
    def stage(self) -> str:
        """Whose frame it is: a stage, or `api`."""
        if self.kind in (AUDIO_INPUT, TEXT_INPUT):
            return "transport"
        return source_of(self.frame) or "api" if self.kind == CONTROL else self.kind.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Ownership:
    """From when on a worker owned a stage."""

    at_ns: int
    stage: str
    worker: str
    epoch: int


def as_heard(moments: Iterable[Moment]) -> list[Moment]:
    """`moments`, which are in the order of their time, without what listeners drop: repetitions and stale frames."""
    epochs: dict[tuple[str, str], int] = {}
    seen: set[tuple[str, str, int, int]] = set()
    heard = []
    for moment in moments:
        frame, producer = moment.frame, (moment.kind, moment.stage)
        if moment.stage != "api":
            place = (*producer, frame.epoch, frame.seq)
            if frame.epoch < epochs.get(producer, 0) or place in seen:
                continue
            epochs[producer] = frame.epoch
            seen.add(place)
        heard.append(moment)
    return heard


class Tape:
    """A recording, decoded."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        framed = ((one, one.frame()) for one in recording.frames)
        everything = [Moment(one.at_ns, one.subject, frame) for one, frame in framed if frame is not None]
        self.unknown = len(recording.frames) - len(everything) + recording.unknown
        """Frames and records of a later version."""
        self.moments = as_heard(everything)
        self.dropped = len(everything) - len(self.moments)
        """Frames that listeners dropped: repeated, or of an owner that had been replaced."""
        self.owners = list(self._owners())

    @property
    def session(self) -> SessionId:
        """Raises ConfigError for a header without a session's id."""
        session = parse_session_id(self.recording.header.session)
        if session is None:
            raise ConfigError("the recording names no session", path="FILE", fix="record it again")
        return session

    @property
    def began_ns(self) -> int:
        """Time of the first frame; 0 where there is none."""
        return self.moments[0].at_ns if self.moments else 0

    @property
    def ended_ns(self) -> int:
        """Time of the last frame."""
        return self.moments[-1].at_ns if self.moments else 0

    def of(self, kind: type[F]) -> Iterator[tuple[int, F]]:
        """The frames of a type, with their time."""
        for moment in self.moments:
            if isinstance(moment.frame, kind):
                yield moment.at_ns, moment.frame

    def requests(self) -> dict[int, SessionRequest]:
        """The configurations by their version, the oldest first. Raises ConfigError for one not known here."""
        found: dict[int, SessionRequest] = {}
        for one in sorted(self.recording.configs, key=lambda one: one.version):
            try:
                found[one.version] = SessionRequest.model_validate(one.request, context=STORED)
            except ValueError as error:
                raise ConfigError(
                    f"this version does not know the session's configuration: {type(error).__name__}",
                    path="FILE",
                    fix=f"use version {self.recording.header.meshag}, which recorded it",
                ) from None
        return found

    def worker(self, stage: str, epoch: int) -> str:
        """Who owned a stage under an epoch; empty where the recording does not tell."""
        return next((one.worker for one in self.owners if (one.stage, one.epoch) == (stage, epoch)), "")

    def missing_until_ns(self, stage: str) -> int:
        """Before this time the recording lacks media that `stage` hears or says: it had gone from the journal."""
        kinds = {"stt": AudioIn, "tts": Speech, "transport": Speech}
        kind = kinds.get(stage)
        first = next(((m.at_ns, m.frame) for m in self.moments if kind is not None and isinstance(m.frame, kind)), None)
        if first is None or (first[1].seq == 0 and first[1].epoch == 1):
            return 0
        return first[0]

    def cut_ns(self, turn: int) -> int:
        """When the answer to a turn was broken off, by an interruption or the next question; else the last frame."""
        ends = [self.silenced_ns(turn)]
        ends += [at for at, frame in self.of(TurnEnded) if frame.turn > turn and frame.text.strip()]
        ends += [at for at, frame in self.of(TextIn) if frame.turn > turn]
        return min([*ends, self.ended_ns])

    def silenced_ns(self, turn: int) -> int:
        """When the answer to a turn was interrupted; else the time after the last frame."""
        return min((at for at, frame in self.of(Interrupt) if frame.turn >= turn), default=self.ended_ns + 1)

    def _owners(self) -> Iterator[Ownership]:
        told = {(frame.stage, frame.epoch) for _, frame in self.of(OwnerChanged)}
        for one in self.recording.owners:
            if (one.stage, one.epoch) not in told:
                yield Ownership(self.began_ns, one.stage, one.worker, one.epoch)
        for at_ns, frame in self.of(OwnerChanged):
            yield Ownership(at_ns, frame.stage, frame.worker, frame.epoch)


def stages_in(configs: Iterable[SessionConfig]) -> list[Stage]:
    """The stages of any of these flows; transport where something is heard of an answer."""
    there: set[Stage] = set()
    for config in configs:
        there |= set(stages_of(config))
        if hears(config, "transport", "tts", "audio"):
            there.add("transport")
    return [stage for stage in (*STAGES[1:], STAGES[0]) if stage in there]
