"""What a reply is made of: thoughts alone are none."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshag.connectors.contracts import LlmEvent, ReplyDone, TextDelta, Thinking, ToolCall
from meshag.errors import ProviderGarbage
from meshag.frames import TextIn
from meshag.stages.llm import LlmSession, Reply

pytestmark = pytest.mark.unit

DONE = ReplyDone("stop")


async def heard(*events: LlmEvent, tools: tuple[str, ...] = ("t",)) -> list[LlmEvent]:
    """What the stage lets through of a provider's events."""

    async def reply(_: object) -> AsyncIterator[LlmEvent]:
        for event in events:
            yield event

    session: Any = SimpleNamespace(_request=lambda *_: SimpleNamespace(tools=tools))
    candidate: Any = SimpleNamespace(name="p", connector=SimpleNamespace(reply=reply))
    return [event async for event in LlmSession._events(session, Reply(1, ""), candidate)]


async def test_thoughts_come_before_and_between_words() -> None:
    events = [Thinking(3), TextDelta("Yes"), Thinking(4), ToolCall("c", "t", "{}"), DONE]
    assert await heard(*events) == events


async def test_a_blank_before_the_first_word_waits_for_it_and_thoughts_do_not() -> None:
    assert await heard(TextDelta(" "), Thinking(1), TextDelta("Yes")) == [Thinking(1), TextDelta(" Yes")]


@pytest.mark.parametrize("events", [[Thinking(3)], [Thinking(3), DONE], [Thinking(3), TextDelta(" "), DONE], [DONE]])
async def test_who_only_thinks_has_given_no_answer(events: list[LlmEvent]) -> None:
    with pytest.raises(ProviderGarbage, match="an empty answer"):
        await heard(*events)


async def test_a_call_of_what_was_not_offered_is_no_answer() -> None:
    with pytest.raises(ProviderGarbage, match="an empty answer"):
        await heard(Thinking(3), ToolCall("c", "t", "{}"), DONE, tools=())


def taken_over(reply: Reply, *, early: bool) -> tuple[Any, list[Reply]]:
    """A new owner that has read `reply` from the journal, its question or not; and what it answers from then on."""
    answered: list[Reply] = []
    session: Any = SimpleNamespace(
        _answered=set(),
        _early={reply.turn} if early else set(),
        _replies={reply.turn: reply},
        _last_turn=reply.turn,
        _voices_ns={},
        _is_repeated=lambda frame: False,
        _stop=lambda reason: None,
        begin_turn=lambda: None,
        _settle=lambda before: None,
        _take_draft=lambda text: None,
        _answer=answered.append,
        spawn=lambda work: work,
    )
    session._ask = lambda reply, frame: LlmSession._ask(session, reply, frame)
    return session, answered


def test_a_question_that_is_heard_after_the_beginning_of_its_answer_is_not_another() -> None:
    """A former owner had begun to answer it when a new one read the journal, a moment before the question."""
    begun = Reply(8, "", chunks=["Yes. "])
    session, answered = taken_over(begun, early=True)
    LlmSession._begin(session, TextIn(turn=8, text="Is it here?", seq=3, epoch=1))
    assert answered == [begun]
    assert (begun.turn, begun.user, begun.said) == (8, "Is it here?", "Yes. ")


def test_nor_is_it_answered_again_when_its_answer_was_complete() -> None:
    done = Reply(8, "", chunks=["Yes."], ended=True)
    session, answered = taken_over(done, early=True)
    LlmSession._begin(session, TextIn(turn=8, text="Is it here?", seq=3, epoch=1))
    assert answered == []
    assert done.user == "Is it here?"


def test_another_question_under_a_number_that_is_taken_gets_the_next() -> None:
    known = Reply(8, "Is it here?", chunks=["Yes."], ended=True)
    session, answered = taken_over(known, early=False)
    LlmSession._begin(session, TextIn(turn=8, text="And where?", seq=3, epoch=1))
    assert [reply.turn for reply in answered] == [9]
