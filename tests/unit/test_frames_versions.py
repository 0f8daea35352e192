"""Workers of two versions serve together: what the one before this wrote, and what the one after it may.

The bytes were recorded; do not make them anew when a frame gets another field: that is what they are to notice.
"""

from typing import get_args

import msgspec
import pytest

from meshag.bus.inlet import ControlInlet, Inlet
from meshag.errors import WireError
from meshag.frames import AnyFrame, TextIn, Unknown, decode, encode
from meshag.sessions.claims import Claim, Claimed
from meshag.sessions.fleet import Presence

pytestmark = pytest.mark.unit

EARLIER = {
    "AudioIn": "96a16107070707c4020102",
    "TextIn": "96a2746907070707a2736f",
    "VoiceStarted": "96a276730707070707",
    "Transcript": "97a2747207070707a2736fc3",
    "TurnLikely": "96a2746c07070707a2736f",
    "TurnEnded": "98a2746507070707a2736f0707",
    "ReplyStarted": "97a2727307070707a2736fa2736f",
    "ReplyChunk": "97a272630707070707a2736f",
    "ReplyEnded": "97a272650707070707a2736f",
    "StageFailed": "98a2736607070707a2736fa2736fa2736f",
    "StageLate": "96a2736c07070707a2736f",
    "ToolCalled": "9ba2746307070707070707a2736fa2736fa2736f",
    "ToolAnswered": "97a274610707070707a2736f",
    "Speech": "99a2737007070707070707c4020102",
    "SpeechEnded": "98a27365070707070707c3",
    "Interrupt": "96a2696e07070707a97472616e73706f7274",
    "PlayStarted": "96a2707307070707a97472616e73706f7274",
    "Played": "9aa2706c07070707070707c3a97472616e73706f7274",
    "ConfigChanged": "97a263630707070707a97472616e73706f7274",
    "OwnerChanged": "98a26f6307070707a2736fa2736fa97472616e73706f7274",
    "Handover": "98a2686f07070707a2736fa2736fa97472616e73706f7274",
    "SessionEnded": "97a2737807070707a2736fa97472616e73706f7274",
    "Say": "99a2737907070707a2736fa2736fc3a97472616e73706f7274",
    "Hush": "96a2687507070707a97472616e73706f7274",
}
"""By kind a frame as it was before its newest fields: every number 7, every text "so", every source transport."""

_GIVEN: dict[type, object] = {int: 7, str: "so", bytes: b"\1\2", bool: True}


def test_every_kind_was_recorded() -> None:
    assert set(EARLIER) == {kind.__name__ for kind in get_args(AnyFrame)} - {"Unknown"}


@pytest.mark.parametrize("name", EARLIER)
def test_a_frame_of_an_earlier_version_is_understood(name: str) -> None:
    frame = decode(bytes.fromhex(EARLIER[name]))
    assert type(frame).__name__ == name
    sent = len(msgspec.msgpack.decode(bytes.fromhex(EARLIER[name]))) - 1
    for place, field in enumerate(msgspec.structs.fields(type(frame))):
        given = "transport" if field.name == "source" else _GIVEN[field.type]  # type: ignore[index]
        assert getattr(frame, field.name) == (given if place < sent else field.default), field.name


@pytest.mark.parametrize("name", EARLIER)
def test_a_frame_of_a_later_version_is_understood(name: str) -> None:
    earlier = decode(bytes.fromhex(EARLIER[name]))
    longer = [*msgspec.msgpack.decode(encode(earlier)), "new", 1, None, {"a": [b"x"]}]
    assert decode(msgspec.msgpack.encode(longer)) == earlier


def test_a_kind_that_only_a_later_version_knows_keeps_its_place() -> None:
    data = msgspec.msgpack.encode(["zz", 3, 4, 5, 6, "what", {"a": 1}])
    assert decode(data) == Unknown(turn=3, seq=4, epoch=5, at_ns=6, kind="zz")
    told = msgspec.msgpack.encode(["zz", 3, 4, 5, 6, "so", "llm", None])
    assert decode(told) == Unknown(turn=3, seq=4, epoch=5, at_ns=6, kind="zz", source="llm")
    for broken in (["zz", 3, 4, 5], ["zz", "3", 4, 5, 6], ["zz", True, 4, 5, 6], [1, 2, 3, 4, 5], ["ti", 1, 2, 3, 4]):
        with pytest.raises(WireError):
            decode(msgspec.msgpack.encode(broken))


def test_nobody_waits_for_a_frame_that_it_would_not_understand() -> None:
    """It counts: the frames after it are no gap, which would be looked for in the journal for seconds."""
    heard: list[AnyFrame] = []
    inlet = Inlet(None, "llm.output.x", heard.append)  # type: ignore[arg-type]
    inlet.start_after(1, -1)
    for seq, frame in enumerate([_text(0), _strange(1), _text(2)]):
        assert msgspec.msgpack.decode(frame)[2] == seq
        inlet._on_message(frame)
    assert [type(frame) for frame in heard] == [TextIn, Unknown, TextIn]


def test_it_counts_among_the_frames_of_its_own_source_too() -> None:
    heard: list[AnyFrame] = []
    control = ControlInlet(None, "control.x", heard.append)  # type: ignore[arg-type]
    for tag, seq in (("in", 0), ("zz", 1), ("in", 2)):
        control._on_message(msgspec.msgpack.encode([tag, 1, seq, 1, 0, "stt"]))
    assert [frame.seq for frame in heard] == [0, 1, 2]


def _text(seq: int) -> bytes:
    return encode(TextIn(turn=1, seq=seq, epoch=1, text="so"))


def _strange(seq: int) -> bytes:
    return msgspec.msgpack.encode(["zz", 1, seq, 1, 0, 1.5])


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("97ad616161616161616161616161 61a3737474020ac2c207", Presence("a" * 13, "stt", 2, 10, pid=7)),
        ("92a26b3303", Claim("k3", 3)),
        ("95a2776f02a0a0c2", Claimed("wo", 2)),
    ],
)
def test_heartbeats_and_claims_of_an_earlier_version_are_understood(data: str, wanted: msgspec.Struct) -> None:
    kind = type(wanted)
    assert msgspec.msgpack.decode(bytes.fromhex(data.replace(" ", "")), type=kind) == wanted
    longer = [*msgspec.msgpack.decode(msgspec.msgpack.encode(wanted)), "new", 1]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(longer), type=kind) == wanted
