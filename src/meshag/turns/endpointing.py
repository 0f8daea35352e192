"""When the caller has begun, paused and finished: from voice probabilities, on the clock of the audio itself.

    QUIET ──voice for start_ms──▶ VoiceStart ──silence──▶ VoicePause ──silence for end_silence_ms──▶ TurnEnd
                                      │    ◀──VoiceResume── │                 (too little voice: FalseStart)
                                      └─ voice for min_interrupt_ms while the agent is busy ──▶ BargeIn

No clock is read: the same probabilities give the same events, in whatever pieces the audio comes. Each event carries
the exact moment, even inside a window.
"""

from dataclasses import dataclass

START, STAY = 0.5, 0.35
"""Voice begins at a probability of START, and lasts as long as it stays at STAY."""

MAX_UTTERANCE_MS = 60_000
"""A turn is ended after this time whatever is heard."""

MIN_VOICE_MS = 120
"""A turn with less voice than this was a click or a cough."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """What a session asked for: `turns` in its configuration."""

    start_ms: int = 60
    """Voice shorter than this is no voice, ms."""

    end_silence_ms: int = 700
    """Silence that ends the turn, ms."""

    min_interrupt_ms: int = 300
    """Voice that stops the agent, ms."""

    interruptible: bool = True
    """Whether voice stops the agent at all."""


@dataclass(frozen=True, slots=True)
class VoiceStart:
    """The caller began to speak."""

    at_ms: int
    """When the voice began, ms of audio; it was certain `start_ms` later."""


@dataclass(frozen=True, slots=True)
class VoicePause:
    """Silence began. Perhaps the end: recognition may start early."""

    at_ms: int
    """When the silence began, ms of audio."""


@dataclass(frozen=True, slots=True)
class VoiceResume:
    """It was not the end: the caller goes on."""

    at_ms: int
    """When the voice came back, ms of audio; it was certain `start_ms` later."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The caller has finished."""

    at_ms: int
    """When that was certain, ms of audio."""

    speech_end_ms: int
    """When the voice stopped, ms of audio."""


@dataclass(frozen=True, slots=True)
class FalseStart:
    """It was too short to be a turn, or a murmur while the agent spoke: forget it."""

    at_ms: int
    """When that was certain, ms of audio."""


@dataclass(frozen=True, slots=True)
class BargeIn:
    """The caller has spoken long enough to stop the agent. At most once a turn."""

    at_ms: int
    """When that was certain, ms of audio."""


TurnEvent = VoiceStart | VoicePause | VoiceResume | TurnEnd | FalseStart | BargeIn


@dataclass(slots=True)
class _Utterance:
    began_ms: int
    voiced_ms: int = 0
    idle_voiced_ms: int = 0
    """Voice while the agent was not busy."""
    paused_ms: int | None = None
    """When the silence began; None while there is voice."""
    barged: bool = False


class Endpointer:
    """One caller's turn-taking."""

    def __init__(self, settings: TurnSettings, *, now_ms: int = 0) -> None:
        """`now_ms`: where its audio clock starts, so that a takeover goes on with its predecessor's times."""
        self.settings = settings
        """May be replaced at any time; best between turns."""
        self.now_ms = now_ms
        """Audio heard so far, ms."""
        self._utterance: _Utterance | None = None
        self._loud = False
        self._loud_since_ms = now_ms
        self._idle_loud_ms = 0

    @property
    def in_turn(self) -> bool:
        """Between VoiceStart and TurnEnd or FalseStart."""
        return self._utterance is not None

    @property
    def speaking(self) -> bool:
        """In a turn, and not in one of its pauses."""
        return self._utterance is not None and self._utterance.paused_ms is None

    def reset(self) -> None:
        """Forget the turn at hand, without an event. The clock goes on."""
        self._utterance = None
        self._loud = False

    def push(self, probability: float, ms: int, agent_busy: bool) -> list[TurnEvent]:
        """What follows from the next `ms` of audio, in order.

        `probability`: of voice in it, 0 to 1. `agent_busy`: the agent speaks, or is about to.
        """
        events = self._hear(probability)
        end_ms = self.now_ms + ms
        while (due_ms := self._due_ms(agent_busy)) is not None and due_ms <= end_ms:
            self._advance(due_ms, agent_busy)
            events.append(self._decide(agent_busy))
        self._advance(end_ms, agent_busy)
        return events

    def _hear(self, probability: float) -> list[TurnEvent]:
        loud = probability >= (STAY if self._loud else START)
        if loud == self._loud:
            return []
        self._loud = loud
        if loud:
            self._loud_since_ms, self._idle_loud_ms = self.now_ms, 0
        elif self._utterance is not None and self._utterance.paused_ms is None:
            self._utterance.paused_ms = self.now_ms
            return [VoicePause(self.now_ms)]
        return []

    def _advance(self, to_ms: int, agent_busy: bool) -> None:
        passed_ms, self.now_ms = to_ms - self.now_ms, to_ms
        idle_ms = 0 if agent_busy else passed_ms
        if self._loud:
            self._idle_loud_ms += idle_ms
        if self._utterance is not None and self._utterance.paused_ms is None:
            self._utterance.voiced_ms += passed_ms
            self._utterance.idle_voiced_ms += idle_ms

    # Two functions that mirror each other: when the next decision is due if nothing changes, and what it is then.

    def _due_ms(self, agent_busy: bool) -> int | None:
        turn = self._utterance
        if turn is None:
            due_ms = self._loud_since_ms + self.settings.start_ms
            return max(due_ms, self.now_ms) if self._loud else None
        forced_ms = turn.began_ms + MAX_UTTERANCE_MS
        if turn.paused_ms is not None:
            due_ms = self._loud_since_ms + self.settings.start_ms
            if not self._loud:
                due_ms = turn.paused_ms + self.settings.end_silence_ms
        elif self._may_barge_in(turn, agent_busy):
            due_ms = self.now_ms + self.settings.min_interrupt_ms - turn.voiced_ms
        else:
            due_ms = forced_ms
        return max(min(due_ms, forced_ms), self.now_ms)

    def _decide(self, agent_busy: bool) -> TurnEvent:
        turn = self._utterance
        if turn is None:
            self._utterance = _Utterance(self._loud_since_ms)
            return self._voice(self._utterance, VoiceStart(self._loud_since_ms))
        if self.now_ms >= turn.began_ms + MAX_UTTERANCE_MS:
            return self._end(turn)
        if turn.paused_ms is None:
            turn.barged = True
            return BargeIn(self.now_ms)
        if self._loud:
            return self._voice(turn, VoiceResume(self._loud_since_ms))
        return self._end(turn)

    def _may_barge_in(self, turn: _Utterance, agent_busy: bool) -> bool:
        return agent_busy and self.settings.interruptible and not turn.barged

    def _voice(self, turn: _Utterance, event: TurnEvent) -> TurnEvent:
        turn.paused_ms = None
        turn.voiced_ms += self.now_ms - self._loud_since_ms
        turn.idle_voiced_ms += self._idle_loud_ms
        return event

    def _end(self, turn: _Utterance) -> TurnEvent:
        self._utterance = None
        self._loud_since_ms, self._idle_loud_ms = self.now_ms, 0
        only_beside_agent = turn.idle_voiced_ms == 0 and not turn.barged
        enough_ms = max(MIN_VOICE_MS, self.settings.min_interrupt_ms) if only_beside_agent else MIN_VOICE_MS
        if turn.voiced_ms < enough_ms:
            return FalseStart(self.now_ms)
        return TurnEnd(self.now_ms, self.now_ms if turn.paused_ms is None else turn.paused_ms)
