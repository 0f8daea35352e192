"""Every NATS subject and stream, built in one place.

Subjects are made from a `SessionId` or a `WorkerId`, never from text that a client wrote.
"""

from typing import Literal, get_args

from meshag.ids import SessionId, WorkerId

Stage = Literal["transport", "stt", "llm", "tts"]
"""A service: a step of a pipeline that runs as its own processes."""

STAGES: tuple[Stage, ...] = get_args(Stage)

AUDIO_INPUT, TEXT_INPUT = "AUDIO_INPUT", "TEXT_INPUT"
STT_OUTPUT, LLM_OUTPUT, TTS_OUTPUT, CONTROL = "STT_OUTPUT", "LLM_OUTPUT", "TTS_OUTPUT", "CONTROL"
PROVIDERS, EVENTS = "PROVIDERS", "EVENTS"

STREAMS: dict[str, str] = {
    AUDIO_INPUT: "audio.input.*",
    TEXT_INPUT: "text.input.*",
    STT_OUTPUT: "stt.output.*",
    LLM_OUTPUT: "llm.output.*",
    TTS_OUTPUT: "tts.output.*",
    CONTROL: "control.*",
    PROVIDERS: "provider.*.*.*",
    EVENTS: "event.*",
}
"""JetStream stream name to the subject filter that it captures. (A stream's own name may hold no dot.)"""

MEDIA = frozenset({AUDIO_INPUT, TTS_OUTPUT})
"""Streams of the media class: memory, bounded by age. The others are of the turn class: file, acknowledged."""

DISCONNECTS = "mesh.disconnect"
"""Where the embedded server's system account repeats its disconnect events."""

PRESENCE_ALL = "worker.*.*"
"""Every worker's heartbeats."""

PROVIDERS_ALL = STREAMS[PROVIDERS]
"""What is known of every provider of every stage."""

EVENTS_ALL = STREAMS[EVENTS]
"""What happens to every session."""


def audio_input(session: SessionId) -> str:
    """Caller audio, 20 ms frames."""
    return f"audio.input.{session}"


def text_input(session: SessionId) -> str:
    """Typed input."""
    return f"text.input.{session}"


def output(stage: Stage, session: SessionId) -> str:
    """What stt, llm or tts says: transcripts, reply chunks, agent audio."""
    return f"{stage}.output.{session}"


def control(session: SessionId) -> str:
    """Interrupts, playout reports, configuration changes, ownership, the end."""
    return f"control.{session}"


def event(session: SessionId) -> str:
    """What happens to a session, for those who watch: made, joined, said, ended."""
    return f"event.{session}"


def claim(stage: Stage, worker_id: WorkerId) -> str:
    """Request: do you take this session?"""
    return f"claim.{stage}.{worker_id}"


def drain(stage: Stage, worker_id: WorkerId) -> str:
    """Request: hand your sessions over, and end."""
    return f"drain.{stage}.{worker_id}"


def worker(stage: Stage, worker_id: WorkerId) -> str:
    """A worker's heartbeats."""
    return f"worker.{stage}.{worker_id}"


def provider(kind: Literal["health", "switch"], stage: str, name: str) -> str:
    """Whether a provider works (what workers found), or may be asked (what an operator says).

    `name`: checked against what is installed, never taken from a request as it is.
    """
    return f"provider.{kind}.{stage}.{name}"


_WHOLE = {"provider": PROVIDERS, "event": EVENTS, "control": CONTROL}
"""Streams that are told by the first token of a subject; the others by two."""


def stream_of(subject: str) -> str:
    """The stream that captures `subject`."""
    head, _, rest = subject.partition(".")
    if head in _WHOLE:
        return _WHOLE[head]
    return f"{head}_{rest.partition('.')[0]}".upper()
