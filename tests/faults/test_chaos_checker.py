"""The checker, on histories made by hand: each broken promise is named, an unbroken history is not blamed."""

from typing import Any

import pytest

from faults.chaos import table
from faults.chaos.checker import Line, check
from faults.chaos.providers import PARTS, PIECES, answer, audio, parts, question, read_piece

pytestmark = pytest.mark.unit

ONE, TWO = "a" * 26, "b" * 26


def heard(number: int, *, until: int = PARTS * PIECES, session: str = ONE, at_ms: float = 1_000.0) -> list[Line]:
    """An answer as it comes, two pieces at a time."""
    spans = []
    for place in range(0, until, 2):
        for one in range(place, min(place + 2, until)):
            part, first = divmod(one, PIECES)
            at = at_ms + 20 * place
            spans.append(line("heard", at, session=session, number=number, part=part, first=first, count=1))
    return spans


def line(what: str, at_ms: float = 0.0, **fields: Any) -> Line:
    return {"what": what, "at_ms": at_ms, **fields}


def event(kind: str, at_ms: float = 0.0, session: str = ONE, **fields: Any) -> Line:
    return line("event", at_ms, session=session, type=kind, t_ms=at_ms, **fields)


def turn(number: int, act: str = "whole", *, turn: int = 1, pieces: int = PARTS * PIECES) -> list[Line]:
    """A question and its answer, as they ought to be."""
    lines = [line("asked", 500.0, session=ONE, number=number, act=act)]
    if act != "typed":
        lines.append(event("turn_ended", 600.0, turn=turn, text=question(number)))
    lines += [event("reply", 700.0, turn=turn, n=n, text=text, filler=False) for n, text in enumerate(parts(number))]
    return lines + heard(number, until=pieces)


def stored(*replies: tuple[int, str]) -> Line:
    turns = [{"turn": n, "user": question(number), "reply": text} for n, (number, text) in enumerate(replies, 1)]
    return line("stored", 9_000.0, session=ONE, turns=turns)


def fault(kind: str, stage: str = "", at_ms: float = 1_200.0, until_ms: float = 1_300.0) -> Line:
    return line("fault", at_ms, id=1, kind=kind, stage=stage, worker="w", sessions=[ONE], until_ms=until_ms)


def metrics(at_ms: float, **values: float) -> Line:
    named = {'meshag_workers_gone_total{how="silent",stage="llm"}': values.get("gone", 0.0)}
    named |= {f"meshag_{name}": value for name, value in values.items() if name != "gone"}
    return line("metrics", at_ms, service="transport", pid=1, values=named)


WHOLE = [*turn(1001), stored((1001, answer(1001)))]


def rules(*history: Line) -> set[str]:
    return {violation.rule for violation in check(history)}


def without(history: list[Line], **fields: Any) -> list[Line]:
    """The history without the lines that have these fields."""
    return [one for one in history if any(one.get(name) != value for name, value in fields.items())]


def test_a_good_history_is_not_blamed() -> None:
    assert check(WHOLE) == []
    assert check([*turn(1001, "typed"), stored((1001, answer(1001)))]) == []


def test_an_answer_that_was_cut_is_remembered_as_far_as_it_was_heard() -> None:
    whole = answer(1001)
    cut = turn(1001, "interrupt", pieces=PIECES + 12)
    assert rules(*cut, stored((1001, whole[: len(parts(1001)[0]) + 15]))) == set()
    assert rules(*cut, stored((1001, whole))) == {"history"}
    assert rules(*cut, stored((1001, ""))) == {"history"}
    assert rules(*cut, stored((1001, "Something else"))) == {"history"}


def test_a_question_without_an_answer_is_lost() -> None:
    asked = line("asked", session=ONE, number=1002, act="whole")
    assert rules(*WHOLE, asked) == {"lost", "history"}
    assert rules(*WHOLE, line("unanswered", session=ONE, number=1001, error="in vain")) == {"lost"}


def test_a_missing_piece_is_lost() -> None:
    assert rules(*without(WHOLE, part=1, first=7)) == {"lost"}
    assert rules(*turn(1001, pieces=70), stored((1001, answer(1001)))) == {"lost"}


def test_a_piece_that_is_heard_twice_is_doubled() -> None:
    again = line("heard", 3_000.0, session=ONE, number=1001, part=2, first=20, count=5)
    assert rules(*WHOLE, again) == {"doubled"}


def test_pieces_and_answers_out_of_order() -> None:
    swapped = list(WHOLE)
    at = swapped.index(next(one for one in swapped if one.get("first") == 3))
    swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    assert rules(*swapped) == {"order"}
    both = [*turn(1001, "barge"), *turn(1002, turn=2), *heard(1001, until=2)]
    assert "order" in rules(*both)


def test_what_is_anothers_is_a_leak() -> None:
    assert rules(*WHOLE, line("heard", session=ONE, number=2001, part=0, first=0, count=1)) == {"leak"}
    assert rules(*WHOLE, line("heard", session=ONE, number=-1, part=0, first=0, count=1)) == {"leak"}
    assert rules(*WHOLE, event("turn_ended", turn=2, text=question(2001))) == {"leak"}
    assert rules(*WHOLE, event("reply", turn=2, n=0, text=parts(2001)[0], filler=False)) == {"leak"}
    assert rules(*WHOLE, line("asked", session=TWO, number=2001, act="whole"), *heard(2001, session=ONE)) >= {"leak"}


def test_what_bridges_a_wait_is_no_part_of_the_answer() -> None:
    filler = line("heard", session=ONE, number=0, part=0, first=0, count=25)
    assert check([filler, *WHOLE]) == []


def test_turns_and_chunks_that_come_twice() -> None:
    assert rules(*WHOLE, event("turn_ended", turn=2, text=question(1001))) == {"doubled"}
    assert rules(*WHOLE, event("reply", turn=1, n=2, text=parts(1001)[2], filler=False)) == {"doubled"}
    more = [event("reply", turn=2, n=n, text=text, filler=False) for n, text in enumerate(parts(1001))]
    assert rules(*WHOLE, *more) == {"doubled"}


def test_a_missing_chunk_and_a_missing_turn_end() -> None:
    assert "lost" in rules(*without(WHOLE, type="reply", n=1))
    assert rules(*without(WHOLE, type="turn_ended")) == {"lost"}


def test_the_history_holds_each_question_once() -> None:
    assert rules(*turn(1001), stored()) == {"history"}
    assert rules(*turn(1001), stored((1001, answer(1001)), (1001, answer(1001)))) == {"history"}
    assert rules(*turn(1001), line("stored", session=ONE, turns=None)) == {"history"}


def frame(**fields: Any) -> Line:
    told = {"subject": "llm.output", "epoch": 1, "stored_ms": 5_000.0, "stored": True, "kind": "ReplyChunk", **fields}
    return line("frame", session=ONE, **told)


def test_turn_frames_that_were_not_stored() -> None:
    read_later = frame(stored_ms=9_000.0)
    assert rules(*WHOLE, frame(stored=False, stored_ms=3_000.0), read_later) == {"journal"}
    assert rules(*WHOLE, frame(stored=False, stored_ms=8_000.0), read_later) == set()
    assert rules(*WHOLE, frame(stored=False, stored_ms=3_000.0)) == set()
    assert rules(*WHOLE, frame(stored=False, stored_ms=3_000.0, subject="tts.output"), read_later) == set()


def test_who_was_replaced_while_frozen_is_to_be_silent() -> None:
    frozen = fault("frozen", "llm", 1_000.0, 3_000.0)
    seen = [metrics(0), metrics(2_000, gone=1)]
    replaced = event("owner_changed", 1_700.0, stage="llm", worker="v", epoch=2)
    assert rules(*WHOLE, *seen, frozen, replaced, frame()) == {"epoch"}
    assert rules(*WHOLE, *seen, frozen, replaced, frame(epoch=2)) == set()
    assert rules(*WHOLE, *seen, frozen, replaced, frame(stored_ms=900.0)) == set()
    assert rules(*WHOLE, *seen, frozen, frame()) == set()


def test_what_is_left_behind() -> None:
    nothing = line("left", keys=[], frames=[], owned={"llm": 0})
    assert check([*WHOLE, nothing, line("left", processes=[])]) == []
    assert rules(*WHOLE, line("left", processes=[4711])) == {"left behind"}
    assert rules(*WHOLE, {**nothing, "keys": ["session:a:lease:llm"]}) == {"left behind"}
    assert rules(*WHOLE, {**nothing, "frames": ["llm.output.a"]}) == {"left behind"}
    assert rules(*WHOLE, {**nothing, "owned": {"llm": 1}}) == {"left behind"}


def test_every_fault_is_to_be_seen_in_a_metric() -> None:
    killed = fault("killed", "llm")
    assert rules(*WHOLE, killed) == {"unseen"}
    assert rules(*WHOLE, killed, metrics(0), metrics(2_000)) == {"unseen"}
    assert rules(*WHOLE, killed, metrics(0), metrics(2_000, gone=1)) == set()
    assert rules(*WHOLE, killed, killed, metrics(0), metrics(2_000, gone=1)) == {"unseen"}
    nats = fault("nats killed")
    assert rules(*WHOLE, nats, metrics(0), metrics(2_000)) == {"unseen"}
    assert rules(*WHOLE, nats, metrics(0), metrics(2_000, bus_reconnects_total=1)) == set()
    valkey = fault("valkey killed", until_ms=3_000.0)
    assert rules(*WHOLE, valkey, metrics(0), metrics(2_000)) == {"unseen"}
    assert rules(*WHOLE, valkey, metrics(0), metrics(2_000, store_failures_total=1)) == set()
    assert rules(*WHOLE, valkey, metrics(0), metrics(2_000, store_seconds_sum=0.4)) == set()


def test_a_run_that_went_wrong_proves_nothing() -> None:
    assert rules(*WHOLE, line("crash", error="no mesh")) == {"crash"}


def test_every_piece_of_audio_says_what_it_is() -> None:
    assert read_piece(audio(3007, 2, 11)) == (3007, 2, 11)
    damaged = bytearray(audio(3007, 2, 11))
    damaged[500] ^= 1
    assert read_piece(bytes(damaged)) is None
    assert read_piece(audio(3007, 2, 11)[2:] + b"\0\0") is None


def test_the_table_counts_takeovers_gaps_and_what_was_broken() -> None:
    history = [
        *WHOLE,
        fault("killed", "llm", at_ms=1_500.0),
        event("owner_changed", 1_580.0, stage="llm", worker="v", epoch=2),
        line("heard", 3_000.0, session=ONE, number=1001, part=2, first=20, count=5),
    ]
    row = table.rows(history, check(history))["llm killed"]
    assert (row.trials, row.sessions, row.lost, row.doubled) == (1, 1, 0, 1)
    assert row.takeovers_ms == [80.0]
    assert 500 < row.gaps_ms[0] < 600
    assert "| llm killed | 1 | 1 | 0 | 1 | 80 / 80 / 80 |" in table.written({"llm killed": row}, "")
