"""Voice in a replay: the real detector on the recorded audio, or, where it is not installed, what it found then."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from meshag.audio import FRAME_MS
from meshag.frames import AudioIn, TurnEnded, VoiceStarted
from meshag.models.catalogue import DEFAULT_VAD, find
from meshag.models.store import is_present
from meshag.recording.tape import Tape
from meshag.sessions.config import SessionRequest
from meshag.settings import Settings
from meshag.stages import stt
from meshag.stages.stt import SttSession
from meshag.turns.vad import WINDOW_SAMPLES


def can_hear(requests: dict[int, SessionRequest]) -> bool:
    """Whether the stage can listen for itself, or need not."""
    if next(iter(requests.values())).config.turns.vad == "provider":
        return True
    return find_spec("onnxruntime") is not None and is_present(find(DEFAULT_VAD), Settings().cache_dir)


@contextmanager
def recorded_voice(tape: Tape) -> Iterator[None]:
    """The detector's place is taken by what it found."""
    hear = SttSession._hear

    def told(self: SttSession, frame: AudioIn, vad: Any) -> None:
        vad.frame = frame
        hear(self, frame, vad)

    places: list[tuple[object, str, object]] = [
        (SttSession, "_silero", object()),
        (SttSession, "_hear", told),
        (stt, "SileroVad", lambda _: _RecordedVad(tape)),
    ]
    former = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, stand_in in places:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, real in former:
            setattr(owner, name, real)


class _RecordedVad:
    """Voice from each recorded beginning to the recorded end of speech, pauses included."""

    def __init__(self, tape: Tape) -> None:
        self.frame: AudioIn
        """The frame that is being heard."""
        self._rest = 0
        lead = next(iter(tape.requests().values())).config.turns.start_ms // FRAME_MS
        began = {started.turn: (started.audio_epoch, started.audio_seq - lead) for _, started in tape.of(VoiceStarted)}
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        for _, ended in tape.of(TurnEnded):
            if ended.turn in began:
                heard = ((one.epoch, one.seq) for _, one in tape.of(AudioIn) if one.at_ns <= ended.speech_end_ns)
                self._spans.append((began[ended.turn], max(heard, default=(0, 0))))

    def push(self, pcm: bytes) -> list[float]:
        """1 or 0 for each window that is complete."""
        windows, self._rest = divmod(self._rest + len(pcm) // 2, WINDOW_SAMPLES)
        place = (self.frame.epoch, self.frame.seq)
        voiced = any(began <= place <= ended for began, ended in self._spans)
        return [1.0 if voiced else 0.0] * windows
