"""A draft is used for the same words, the same configuration and the same provider, and otherwise thrown away."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from meshag.connectors.contracts import LlmEvent, ReplyDone, TextDelta
from meshag.errors import ProviderUnavailable
from meshag.stages.draft import Draft

pytestmark = pytest.mark.unit

FIRST: Any = "the first provider"
ANOTHER: Any = "another provider"


async def told(*events: LlmEvent, failure: Exception | None = None) -> AsyncGenerator[LlmEvent, None]:
    for event in events:
        yield event
    if failure is not None:
        raise failure


@pytest.mark.parametrize(
    ("text", "version", "candidate", "suits"),
    [
        ("Are you open?", 1, FIRST, True),
        ("are you open", 1, FIRST, True),
        ("Are you open today?", 1, FIRST, False),
        ("Are you open?", 2, FIRST, False),
        ("Are you open?", 1, ANOTHER, False),
        ("Are you open?", 1, None, False),
    ],
)
async def test_what_it_is_used_for(text: str, version: int, candidate: Any, suits: bool) -> None:
    draft = Draft("Are you open?", 1, FIRST, told())
    assert draft.suits(text, version, candidate) is suits
    await draft.aclose()


async def test_all_of_it_is_heard_from_the_beginning() -> None:
    said = [TextDelta("Yes"), TextDelta("."), ReplyDone("stop")]
    draft = Draft("Are you open?", 1, FIRST, told(*said))
    await asyncio.sleep(0)  # it is being made while nobody listens
    assert [event async for event in draft.events()] == said


async def test_its_failure_is_the_providers() -> None:
    draft = Draft("Are you open?", 1, FIRST, told(TextDelta("Yes"), failure=ProviderUnavailable("p: gone")))
    with pytest.raises(ProviderUnavailable):
        [event async for event in draft.events()]


async def test_thrown_away_it_closes_what_makes_it() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[LlmEvent, None]:
        try:
            while True:
                yield TextDelta("la")
                await asyncio.sleep(0)
        finally:
            closed.set()

    draft = Draft("Are you open?", 1, FIRST, endless())
    await asyncio.sleep(0.01)
    await draft.aclose()
    assert closed.is_set()
