"""Frames travel between neighbouring versions; whatever else arrives is a WireError and nothing worse."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag import frames
from meshag.errors import WireError
from meshag.frames import AnyFrame, AudioIn, Frame, Speech, TextIn, Transcript, decode, encode

pytestmark = pytest.mark.unit

KINDS: tuple[type[Frame], ...] = get_args(AnyFrame)
_VALUES: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(),
    bytes: st.binary(max_size=2000),
    bool: st.booleans(),
}


def _any(kind: type[Frame]) -> st.SearchStrategy[Frame]:
    return st.builds(kind, **{field.name: _VALUES[field.type] for field in msgspec.structs.fields(kind)})


def _as_array(frame: Frame) -> list[Any]:
    array = msgspec.msgpack.decode(encode(frame))
    assert isinstance(array, list)
    return array


def _example(kind: type[Frame]) -> Frame:
    values: dict[type, Any] = {int: 7, str: "so", bytes: b"\1\2", bool: True}
    return kind(**{field.name: values[field.type] for field in msgspec.structs.fields(kind)})


def test_every_frame_of_the_module_travels():
    defined = {kind for kind in vars(frames).values() if isinstance(kind, type) and issubclass(kind, Frame)}
    assert defined - {Frame} == set(KINDS)
    tags = [msgspec.inspect.type_info(kind).tag for kind in KINDS]  # type: ignore[attr-defined]
    assert len(set(tags)) == len(KINDS)


@given(st.one_of([_any(kind) for kind in KINDS]))
def test_what_is_sent_is_what_arrives(frame: Frame):
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_a_newer_version_is_passed_over(kind: type[Frame]):
    frame = _example(kind)
    for more in ("more", 1, None, b"x", [1, 2], {"a": 1}):
        assert decode(msgspec.msgpack.encode([*_as_array(frame), more])) == frame


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_version_may_lack_the_newest_field_with_a_default(kind: type[Frame]):
    last = msgspec.structs.fields(kind)[-1]
    shorter = msgspec.msgpack.encode(_as_array(_example(kind))[:-1])
    if last.required:
        with pytest.raises(WireError):
            decode(shorter)
    else:
        found = decode(shorter)
        assert type(found) is kind
        assert getattr(found, last.name) == last.default


def test_the_first_fields_are_where_they_always_were():
    """Removing or moving one would make neighbours misread each other."""
    assert _as_array(TextIn(turn=1, seq=2, epoch=3, at_ns=4, text="so")) == ["ti", 1, 2, 3, 4, "so"]
    assert _as_array(AudioIn(turn=1, seq=2, epoch=3, at_ns=4, pcm=b"\0\0")) == ["a", 1, 2, 3, 4, b"\0\0"]
    speech = Speech(turn=1, seq=2, epoch=3, at_ns=4, n=5, offset=6, rate_hz=7, pcm=b"\1\0", text="so")
    assert _as_array(speech) == ["sp", 1, 2, 3, 4, 5, 6, 7, b"\1\0", "so", 0, "", 0]
    transcript = Transcript(turn=1, seq=2, epoch=3, at_ns=4, text="so", final=True, provider="x")
    assert _as_array(transcript) == ["tr", 1, 2, 3, 4, "so", True, "x"]


def test_audio_is_raw_bytes():
    assert len(encode(AudioIn(seq=70_000, epoch=1, at_ns=1_790_000_000_000_000_000, pcm=bytes(640)))) < 680


_GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=12,
    ).map(msgspec.msgpack.encode),
    st.tuples(st.sampled_from([*("a", "ti", "te", "rc", "sp", "in", "zz")]), st.lists(st.integers() | st.text())).map(
        lambda pair: msgspec.json.encode([pair[0], *pair[1]])
    ),
)


@given(_GARBAGE)
def test_garbage_is_a_wire_error_or_a_frame_and_nothing_else(data: bytes):
    try:
        frame = decode(data)
    except WireError:
        return
    assert isinstance(frame, KINDS)


@given(st.one_of([_any(kind) for kind in KINDS]), st.data())
def test_a_damaged_frame_is_a_wire_error_or_a_frame(frame: Frame, data: st.DataObject):
    raw = bytearray(encode(frame))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        decode(bytes(raw[:cut]))
    except WireError:
        pass


def test_what_was_said_is_not_in_the_error():
    with pytest.raises(WireError) as caught:
        decode(msgspec.msgpack.encode(["ti", 1, 2, 3, 4, 5, "my card number is 4111"]))
    assert "4111" not in str(caught.value)
