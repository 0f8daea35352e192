"""Frames: everything that travels between the services.

msgspec structs as tagged msgpack arrays, audio as raw bytes. A field may be added at the end with a default; nothing
is removed or reordered, so workers of neighbouring versions understand each other.

Every frame carries:
    turn    the turn it belongs to, from 1; 0 where no turn is known yet
    seq     counts the frames of one producer on one subject within its epoch, from 0
    epoch   the producer's ownership epoch, from 1; older epochs are dropped by everybody
    at_ns   Unix time of what the frame reports, nanoseconds: each hop's latency can be read off the journal alone
"""

from typing import Any, TypeAlias, TypeVar, get_args

import msgspec

from meshag.errors import WireError


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=True, kw_only=True):
    """What every frame carries. See the module's docstring."""

    turn: int = 0
    seq: int = 0
    epoch: int = 0
    at_ns: int = 0


# -- the caller: audio.input, text.input ------------------------------------------------------------------------------


class AudioIn(Frame, tag="a", frozen=True, kw_only=True):
    """Caller audio: 20 ms of PCM16 little-endian mono at 16 kHz. `at_ns`: when the transport had all of it."""

    pcm: bytes
    """640 bytes; less only in the last frame of a call."""


class TextIn(Frame, tag="ti", frozen=True, kw_only=True):
    """What the caller typed: a whole turn."""

    text: str
    """1 to 4,000 characters."""


# -- stt.output -------------------------------------------------------------------------------------------------------


class VoiceStarted(Frame, tag="vs", frozen=True, kw_only=True):
    """The caller began to speak."""

    audio_seq: int
    """The AudioIn frame in which the voice began (before the pre-roll)."""

    audio_epoch: int = 0
    """That frame's epoch: every call counts its audio anew."""


class Transcript(Frame, tag="tr", frozen=True, kw_only=True):
    """What was heard of the turn so far."""

    text: str
    """The whole turn's text so far, not a difference."""

    final: bool
    """False: interim, may still change."""

    provider: str = ""
    """The connector that heard it."""


class TurnEnded(Frame, tag="te", frozen=True, kw_only=True):
    """The caller has finished: the llm may answer."""

    text: str
    """The whole turn. Empty: nothing intelligible was said, and nobody answers."""

    audio_seq: int
    """Every AudioIn frame up to this one has been dealt with: a takeover starts reading after it."""

    speech_end_ns: int
    """Unix time at which the caller's voice stopped, nanoseconds."""

    audio_epoch: int = 0
    """The epoch of the frame `audio_seq`: every call counts its audio anew."""


class TurnLikely(Frame, tag="tl", frozen=True, kw_only=True):
    """The caller has probably finished: an answer may be begun, but nobody may hear it before TurnEnded."""

    text: str
    """The turn so far. Empty: the caller goes on."""


# -- llm.output -------------------------------------------------------------------------------------------------------


class ReplyStarted(Frame, tag="rs", frozen=True, kw_only=True):
    """The model has begun to answer a turn."""

    provider: str
    """The connector that answers."""

    model: str
    """The model's name as the provider knows it."""


class ReplyChunk(Frame, tag="rc", frozen=True, kw_only=True):
    """A piece of the reply that can be spoken by itself: a clause or a sentence."""

    n: int
    """Counts the reply's chunks, from 0."""

    text: str
    """The chunk with the blanks that join it to its neighbours: the concatenation is the reply."""

    filler: bool = False
    """Said to bridge a wait: heard by the caller, but no part of the reply."""


class ReplyEnded(Frame, tag="re", frozen=True, kw_only=True):
    """The reply is complete."""

    chunks: int
    """How many chunks it has."""

    reason: str
    """`stop`, `length`, `interrupted` or `failed`."""


class ToolCalled(Frame, tag="tc", frozen=True, kw_only=True):
    """The model wants a function called. Published before it is: whoever takes over calls it under the same key."""

    n: int
    """Counts the turn's calls, from 0."""

    batch: int
    """Counts the answers of the model that called functions: calls of one batch were made together."""

    chunks: int
    """How many chunks the reply had before it."""

    id: str
    """The model's name for the call."""

    name: str
    """The function."""

    arguments: str
    """JSON, as the model wrote it."""


class ToolAnswered(Frame, tag="ta", frozen=True, kw_only=True):
    """What a called function answered: it is not called again."""

    n: int
    """The call."""

    text: str
    """What the model is told."""


class StageLate(Frame, tag="sl", frozen=True, kw_only=True):
    """A stage is still trying to do its part of a turn: the caller is asked for patience."""

    stage: str
    """stt."""


class StageFailed(Frame, tag="sf", frozen=True, kw_only=True):
    """A stage could not do its part of a turn. The caller is told; the session goes on."""

    stage: str
    """stt, llm or tts."""

    code: str
    """A stable snake_case word, as in `errors.py`."""

    message: str
    """For people: never what a caller said, nor a secret."""


# -- tts.output -------------------------------------------------------------------------------------------------------


class Speech(Frame, tag="sp", frozen=True, kw_only=True):
    """Agent audio: a piece of chunk `n` of the turn's reply."""

    n: int
    """The reply chunk that it speaks."""

    offset: int
    """Samples of the chunk before this piece: playout drops what it has already played."""

    rate_hz: int
    """Sample rate."""

    pcm: bytes
    """PCM16 little-endian mono, 20 to 200 ms."""

    text: str = ""
    """With the first piece of a chunk (`offset` 0): the chunk's text, for captions in time with the voice."""

    take: int = 0
    """Counts the voices that have begun the chunk: what an earlier one said of it and was not heard is dropped."""

    provider: str = ""
    """Whose voice it is."""

    own_mb: int = 0
    """How loud the session's own voice is known to speak, millibels of full scale: -2000 is -20 dBFS. 0: not known."""


class SpeechEnded(Frame, tag="se", frozen=True, kw_only=True):
    """All audio of chunk `n` has been sent; with `last`, of the whole reply."""

    n: int
    """The chunk; when `last`, the number of chunks that were spoken."""

    samples: int
    """Length of the chunk, samples at the voice's rate."""

    last: bool
    """True: nothing more comes for this turn."""

    provider: str = ""
    """Whose voice spoke the chunk; empty where none did."""

    own_mb: int = 0
    """As in `Speech`."""


# -- control ----------------------------------------------------------------------------------------------------------


class Interrupt(Frame, tag="in", frozen=True, kw_only=True):
    """Stop answering `turn` and every turn before it."""

    source: str
    """Who publishes it: `stt` (the caller spoke) or `transport` (the caller asked)."""


class PlayStarted(Frame, tag="ps", frozen=True, kw_only=True):
    """The first audio of a turn's reply left for the caller."""

    source: str = "transport"


class Played(Frame, tag="pl", frozen=True, kw_only=True):
    """The caller has heard the reply of `turn` up to here; it is over. The history keeps this much."""

    n: int
    """Chunks heard to their end."""

    ms: int
    """Milliseconds heard of the chunk after those."""

    chunk_ms: int
    """That chunk's length as far as known, ms: tells how much of its text was heard."""

    interrupted: bool
    """False: the caller heard all of it."""

    source: str = "transport"


class ConfigChanged(Frame, tag="cc", frozen=True, kw_only=True):
    """The session's configuration was replaced: it holds from the next turn on."""

    version: int
    """The stored configuration's version."""

    source: str = "api"


class OwnerChanged(Frame, tag="oc", frozen=True, kw_only=True):
    """A stage of the session has a new owner. `epoch` is the new owner's."""

    stage: str
    worker: str
    source: str
    """The stage itself."""


class Handover(Frame, tag="ho", frozen=True, kw_only=True):
    """A draining owner wants to be replaced."""

    stage: str
    worker: str
    source: str
    """The stage itself."""


class SessionEnded(Frame, tag="sx", frozen=True, kw_only=True):
    """The session is over: let go of it."""

    reason: str
    """`ended`, `expired` or `failed`."""

    source: str = "api"


class Say(Frame, tag="sy", frozen=True, kw_only=True):
    """The agent is to say this to the caller. On `control` from the API, to the transport that has the caller; that one
    numbers the turn and repeats it on `text.input`: it is a turn whose reply is known.
    """

    text: str
    """1 to 4,000 characters."""

    id: str = ""
    """Who has acted on it does not do so again."""

    interrupt: bool = True
    """False: it waits until the answer on its way has been heard."""

    source: str = "api"
    """`api` or `transport`."""


class Hush(Frame, tag="hu", frozen=True, kw_only=True):
    """The agent is to be silent. The transport that has the caller knows what it is answering: it says Interrupt."""

    source: str = "api"


class Unknown(Frame, tag="?", frozen=True, kw_only=True):
    """A frame of a kind that only a newer version knows: nobody acts on it, but its producer has counted it."""

    kind: str
    """Its tag."""

    source: str = ""
    """Who publishes it, on a subject with several producers."""


AnyFrame: TypeAlias = (
    AudioIn | TextIn | VoiceStarted | Transcript | TurnLikely | TurnEnded | ReplyStarted | ReplyChunk | ReplyEnded
    | StageFailed | StageLate | ToolCalled | ToolAnswered | Speech | SpeechEnded | Interrupt | PlayStarted | Played
    | ConfigChanged | OwnerChanged | Handover | SessionEnded | Say | Hush | Unknown
)  # fmt: skip

F = TypeVar("F", bound=Frame)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(AnyFrame)


def encode(frame: Frame) -> bytes:
    """A frame as it travels."""
    return _encoder.encode(frame)


def decode(data: bytes) -> AnyFrame:
    """The frame in `data`, `Unknown` where only a newer version knows its kind. Raises WireError for what is none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if (unknown := _newer(data)) is not None:
            return unknown
        raise WireError(f"not a frame: {type(error).__name__}, {len(data)} bytes") from None


def _newer(data: bytes) -> Unknown | None:
    """A frame of a newer version's, as far as every frame is alike."""
    try:
        kind, turn, seq, epoch, at_ns, *more = msgspec.msgpack.decode(data, type=list[Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    if not isinstance(kind, str) or kind in _KINDS or not all(type(part) is int for part in (turn, seq, epoch, at_ns)):
        return None
    source = next((part for part in reversed(more) if part in _SOURCES), "")  # every control frame has it at its end
    return Unknown(turn=turn, seq=seq, epoch=epoch, at_ns=at_ns, kind=kind[:8], source=source)


_KINDS = frozenset(kind.__struct_config__.tag for kind in get_args(AnyFrame))

_SOURCES = ("transport", "stt", "llm", "tts", "api")
"""Who publishes control frames."""
