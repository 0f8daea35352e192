"""What a reply is made of: thoughts alone are none."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshag.connectors.contracts import LlmEvent, ReplyDone, TextDelta, Thinking, ToolCall
from meshag.errors import ProviderGarbage
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
