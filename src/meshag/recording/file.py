"""A recording: one session in one file. The format is told in docs/recording.md.

gzip of: a line of JSON (`Header`), then records, each a length (4 bytes, big-endian) and a msgpack array. It is written
as it comes and can be read as far as it goes: a file that was cut off lacks `End`, and all before the cut is there.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec

import meshag
from meshag import clock
from meshag.errors import ConfigError, WireError
from meshag.frames import AnyFrame, decode

FORMAT = "meshag-recording"

VERSION = 1
"""Of the format. Records may gain fields and new kinds may come without a new number: readers skip what they do not
know. A higher number means that a reader of this one would get it wrong."""

HEADER_BYTES = 64 * 1024
RECORD_BYTES = 16 * 1024 * 1024
"""A longer header or record is none."""

AUDIO_INPUT, TEXT_INPUT, CONTROL = "audio.input", "text.input", "control"
STT_OUTPUT, LLM_OUTPUT, TTS_OUTPUT = "stt.output", "llm.output", "tts.output"
KINDS = (AUDIO_INPUT, TEXT_INPUT, STT_OUTPUT, LLM_OUTPUT, TTS_OUTPUT, CONTROL)
"""The subjects of a session, without its id."""

_BLOCK = 64 * 1024
_LENGTH = struct.Struct(">I")


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    session: str
    """The session's id."""

    format: str = FORMAT
    version: int = VERSION

    meshag: str = meshag.__version__
    """The version that recorded it."""

    recorded_at_ns: int = 0
    """When the recording began, Unix time, nanoseconds."""

    followed: bool = False
    """Whether the session was recorded as it went on; else it is what the journal held at that moment."""


class Framed(msgspec.Struct, array_like=True, frozen=True, tag="f", gc=False):
    """A frame, exactly as it was published."""

    subject: str
    """Its subject without the session: `audio.input`, `stt.output`, `control`, …"""

    sequence: int
    """Its number in the stream; 0: it was heard, but the stream did not store it."""

    at_ns: int
    """When the server stored it, by the server's clock (with `sequence` 0: when it was heard), Unix time, ns."""

    payload: bytes
    """msgpack, as in `frames.py`."""

    def frame(self) -> AnyFrame | None:
        """None for one of a later version."""
        try:
            return decode(self.payload)
        except WireError:
            return None


class Configured(msgspec.Struct, array_like=True, frozen=True, tag="c"):
    """What the session was asked to be, from this version of its configuration on."""

    version: int
    request: Any
    """The body of `POST /sessions/with-config`. Holds no keys: they never stand in a configuration."""

    at_ns: int = 0
    """When that was read, Unix time, ns."""


class Said(msgspec.Struct, array_like=True, frozen=True, tag="h"):
    """A turn of the session's history as it was stored. One of the same turn replaces it."""

    turn: int
    exchange: bytes
    """JSON, as in `turns/history.py`."""


class Owner(msgspec.Struct, array_like=True, frozen=True, tag="o"):
    """Who owned a stage when the recording began. Later owners stand among the control frames."""

    stage: str
    worker: str
    epoch: int


class State(msgspec.Struct, array_like=True, frozen=True, tag="s"):
    """Where the session stood when the recording began."""

    status: str
    created_at_s: float
    ttl_s: int


class End(msgspec.Struct, array_like=True, frozen=True, tag="e"):
    """The last record. Without it the file was cut off."""

    reason: str
    """`ended`, `expired`, … as the session did; `stopped`: recording was; `snapshot`: the journal was read once."""

    at_ns: int
    frames: int
    """How many `Framed` there are."""


Record: TypeAlias = Framed | Configured | Said | Owner | State | End

_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()
_headers = msgspec.json.Decoder(Header)


class Recording(msgspec.Struct):
    """A file's contents."""

    header: Header
    frames: list[Framed] = []
    """In the order in which they were stored, by time."""
    configs: list[Configured] = []
    said: dict[int, bytes] = {}
    owners: list[Owner] = []
    state: State | None = None
    end: End | None = None
    unknown: int = 0
    """Records of a later version, which were passed over."""

    @property
    def cut_off(self) -> bool:
        """Whether the file ends before its recording did."""
        return self.end is None


class Writer:
    """Writes a recording. `close` it; what was written before a `flush` survives whatever kills the process."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.frames = 0
        """Written so far."""
        self._first = msgspec.json.encode(header) + b"\n"

    def write(self, record: Record) -> None:
        """Add a record. Raises OSError when the disk is full."""
        self._begin()
        self.frames += isinstance(record, Framed)
        data = _encoder.encode(record)
        self._put(_LENGTH.pack(len(data)) + data)

    def flush(self) -> None:
        """Bring everything written so far into the file. Raises OSError."""
        self._begin()
        self._file.write(self._packer.flush(zlib.Z_SYNC_FLUSH))
        self._file.flush()

    def close(self, reason: str) -> None:
        """Write the end. Raises OSError."""
        self.write(End(reason, clock.wall_ns(), self.frames))
        self._file.write(self._packer.flush(zlib.Z_FINISH))
        self._file.flush()

    def _begin(self) -> None:
        """The first line is written with the first record: where there is nothing to record the file stays empty."""
        if self._first:
            first, self._first = self._first, b""
            self._put(first)

    def _put(self, data: bytes) -> None:
        packed = self._packer.compress(data)
        if packed:
            self._file.write(packed)


def create(path: Path) -> BinaryIO:
    """A new file that only its owner may read: it holds what was said. Raises ConfigError for one that is there."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise ConfigError(f"{path} is there already", path="-o", fix="name another file, or remove it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be written: {why}", path="-o", fix="name another file") from None


def read(path: str | Path) -> Recording:
    """A file's contents, as far as they go. Raises ConfigError for a file that is none, or of a later version."""
    try:
        with open(path, "rb") as file:
            return load(file, str(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}", path="FILE", fix="name a recording") from None


def load(file: BinaryIO, name: str) -> Recording:
    """The same of an open file; `name` is for the error."""
    chunks, rest = _unpacked(file), b""
    for chunk in chunks:
        rest += chunk
        if b"\n" in rest or len(rest) > HEADER_BYTES:
            break
    line, newline, rest = rest.partition(b"\n")
    found = Recording(_header(line if newline else b"", name))
    for data in _records(rest, chunks):
        try:
            record = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found.unknown += 1
            continue
        if isinstance(record, Framed):
            found.frames.append(record)
        elif isinstance(record, Configured):
            found.configs.append(record)
        elif isinstance(record, Said):
            found.said[record.turn] = record.exchange
        elif isinstance(record, Owner):
            found.owners.append(record)
        elif isinstance(record, State):
            found.state = record
        else:
            found.end = record
    found.frames.sort(key=lambda framed: framed.at_ns)  # stable: within a subject as they were stored
    return found


def _header(line: bytes, name: str) -> Header:
    try:
        tell = msgspec.json.decode(line)
        version = tell["version"] if tell["format"] == FORMAT else None
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError):
        version = None
    if type(version) is not int:
        raise ConfigError(
            f"{name} is not a recording", path="FILE", fix="make one with `meshag record`", code="recording_invalid"
        )
    if version > VERSION:
        raise ConfigError(
            f"{name} was recorded by a later version of MeshAG (format {version}; this one reads up to {VERSION})",
            path="FILE",
            fix="use that version, or a later one",
            code="recording_too_new",
        )
    try:
        return _headers.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ConfigError(
            f"{name} is damaged in its first line", path="FILE", fix="record it again", code="recording_invalid"
        ) from None


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """What was compressed, up to where the file was cut off or is damaged."""
    unpacker = zlib.decompressobj(31)
    while packed := file.read(_BLOCK):
        try:
            while packed and not unpacker.eof:
                yield unpacker.decompress(packed, 1024 * 1024)
                packed = unpacker.unconsumed_tail
        except zlib.error:
            return
        if unpacker.eof:
            return


def _records(rest: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    buffer = bytearray(rest)
    at = 0
    while True:
        while len(buffer) - at < _LENGTH.size or len(buffer) - at - _LENGTH.size < _LENGTH.unpack_from(buffer, at)[0]:
            if len(buffer) - at >= _LENGTH.size and _LENGTH.unpack_from(buffer, at)[0] > RECORD_BYTES:
                return
            chunk = next(chunks, None)
            if chunk is None:
                return
            del buffer[:at]
            at = 0
            buffer += chunk
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(buffer, at)[0]
        yield bytes(buffer[start:at])
