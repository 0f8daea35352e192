"""The recording's file: what is written comes back, as far as the file goes, and nothing else is taken for one."""

import gzip
import io
import json
import struct
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag.errors import ConfigError
from meshag.frames import TextIn, encode
from meshag.recording.file import (
    KINDS,
    Configured,
    Framed,
    Header,
    Owner,
    Record,
    Recording,
    Said,
    State,
    Writer,
    create,
    load,
    read,
)

pytestmark = pytest.mark.unit

SESSION = "a" * 26
numbers = st.integers(0, 2**63 - 1)
records = st.lists(
    st.one_of(
        st.builds(Framed, st.sampled_from(KINDS), numbers, numbers, st.binary(max_size=60)),
        st.builds(Configured, numbers, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), numbers),
        st.builds(Said, st.integers(0, 50), st.binary(max_size=100)),
        st.builds(Owner, st.sampled_from(["stt", "llm"]), st.text(max_size=13), numbers),
        st.builds(State, st.text(max_size=5), st.floats(0, 1e10), numbers),
    ),
    max_size=8,
)


def written(of: list[Record], *, end: str | None = "ended") -> bytes:
    file = io.BytesIO()
    writer = Writer(file, Header(SESSION, recorded_at_ns=7))
    for record in of:
        writer.write(record)
    if end is None:
        writer.flush()
    else:
        writer.close(end)
    return file.getvalue()


def loaded(data: bytes) -> Recording:
    return load(io.BytesIO(data), "file")


def frames_of(of: list[Record]) -> list[Framed]:
    return sorted((one for one in of if isinstance(one, Framed)), key=lambda one: one.at_ns)


@settings(max_examples=40, deadline=None)
@given(records)
def test_what_is_written_comes_back(of: list[Record]) -> None:
    found = loaded(written(of))
    assert found.header == Header(SESSION, recorded_at_ns=7)
    assert found.frames == frames_of(of)
    assert found.configs == [one for one in of if isinstance(one, Configured)]
    assert found.said == {one.turn: one.exchange for one in of if isinstance(one, Said)}
    assert found.owners == [one for one in of if isinstance(one, Owner)]
    assert found.state == next((one for one in reversed(of) if isinstance(one, State)), None)
    assert found.end is not None
    assert (found.end.reason, found.end.frames, found.cut_off) == ("ended", len(found.frames), False)


@settings(max_examples=40, deadline=None)
@given(records, st.floats(0, 1))
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(of: list[Record], part: float) -> None:
    whole = written(of)
    cut = whole[: int(part * (len(whole) - 1))]
    try:
        found = loaded(cut)
    except ConfigError:  # not even the first line
        return
    assert found.cut_off or len(whole) - len(cut) <= 16  # only gzip's own end is missing
    there = [frame for frame in of if isinstance(frame, Framed)][: len(found.frames)]
    assert found.frames == sorted(there, key=lambda one: one.at_ns)


def test_what_was_flushed_survives_the_end_of_the_process() -> None:
    of: list[Record] = [Framed("stt.output", n, n, bytes(50)) for n in range(20)]
    found = loaded(written(of, end=None))
    assert found.frames == of
    assert found.cut_off


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_damage_never_raises_anything_else(noise: bytes, at: int) -> None:
    whole = written([Framed("control", 1, 1, bytes(99)), Said(1, b"{}")])
    for data in (noise, gzip.compress(noise), whole[:at] + noise + whole[at + len(noise) :]):
        with suppress(ConfigError):
            assert len(loaded(data).frames) <= 1


def repacked(header: dict[str, object], *records: list[object]) -> bytes:
    packed = [msgspec.msgpack.encode(record) for record in records]
    body = b"".join(struct.pack(">I", len(one)) + one for one in packed)
    return gzip.compress(json.dumps(header).encode() + b"\n" + body)


GOOD = {"format": "meshag-recording", "version": 1, "session": SESSION}


def test_a_later_format_is_refused_and_later_records_are_passed_over() -> None:
    with pytest.raises(ConfigError, match="later version") as refused:
        loaded(repacked(GOOD | {"version": 2}))
    assert refused.value.code == "recording_too_new"
    found = loaded(
        repacked(GOOD | {"more": 1}, ["z", 1], ["o", "stt", "w", 1, "new field"], ["e", "ended", 1, 0, "new field"])
    )
    assert found.unknown == 1
    assert found.owners == [Owner("stt", "w", 1)]
    assert not found.cut_off


def test_a_frame_of_a_later_version_is_kept_and_not_understood() -> None:
    known, unknown = encode(TextIn(turn=1, text="Hello")), msgspec.msgpack.encode(["later", 1, 2])
    found = loaded(written([Framed("text.input", 1, 1, known), Framed("text.input", 2, 2, unknown)]))
    assert [one.frame() for one in found.frames] == [TextIn(turn=1, text="Hello"), None]


def test_a_length_that_cannot_be_ends_the_file_there() -> None:
    body = json.dumps(GOOD).encode() + b"\n" + struct.pack(">I", 2**31) + b"x" * 100
    assert loaded(gzip.compress(body)).cut_off


def test_only_its_owner_may_read_a_new_file_and_none_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "call.mesh"
    create(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        create(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        create(tmp_path / "no" / "call.mesh")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.mesh")
