"""What every language-model connector promises.

A new provider is one more line in `IMPLEMENTATIONS`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from meshag.connectors.contracts import LlmConnector, LlmEvent, LlmRequest, Message, ReplyDone, TextDelta
from meshag.connectors.llm.local import LocalLlm, LocalLlmOptions
from meshag.errors import ModelError
from meshag.models import store
from meshag.models.catalogue import DEFAULT_LLM, SMALL_LLM, find

pytestmark = [pytest.mark.contract, pytest.mark.models]

IMPLEMENTATIONS: dict[str, Callable[[], LlmConnector]] = {"local": LocalLlm}

SYSTEM = "You are a friendly voice assistant. Answer in one short sentence."
CAPITAL = "What is the capital of France?"


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def connector(request: pytest.FixtureRequest) -> Iterator[LlmConnector]:
    made = IMPLEMENTATIONS[request.param]()
    availability = made.availability()
    assert availability.available, f"{availability.detail} (or run pytest -m 'not models')"
    asyncio.run(made.warm())
    yield made
    asyncio.run(made.aclose())


def request_of(
    connector: LlmConnector, *texts: str, said: str = "", system: str = SYSTEM, **options: Any
) -> LlmRequest:
    """The texts are the user's and the assistant's in turn."""
    messages = [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return LlmRequest(system, messages, connector.options(**{"temperature": 0.0, **options}), said)


async def events_of(connector: LlmConnector, request: LlmRequest) -> list[LlmEvent]:
    async with asyncio.timeout(120):
        return [event async for event in connector.reply(request)]


def text_of(events: list[LlmEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class TestLlmConnector:
    async def test_it_answers(self, connector: LlmConnector) -> None:
        assert "Paris" in text_of(await events_of(connector, request_of(connector, CAPITAL)))

    async def test_deltas_then_one_done(self, connector: LlmConnector) -> None:
        *deltas, done = await events_of(connector, request_of(connector, CAPITAL))
        assert len(deltas) > 1
        assert all(isinstance(event, TextDelta) and event.text for event in deltas)
        assert isinstance(done, ReplyDone)
        assert done.reason == "stop"
        assert done.input_tokens > 10
        assert done.output_tokens > 1

    async def test_a_cut_answer_says_so(self, connector: LlmConnector) -> None:
        events = await events_of(connector, request_of(connector, "Tell me a long story.", max_tokens=5))
        assert events[-1] == ReplyDone("length", input_tokens=events[-1].input_tokens, output_tokens=5)  # type: ignore[union-attr]

    async def test_it_remembers_the_conversation(self, connector: LlmConnector) -> None:
        request = request_of(connector, "My name is Barnaby.", "Nice to meet you, Barnaby!", "What is my name?")
        assert "Barnaby" in text_of(await events_of(connector, request))

    @pytest.mark.parametrize("said", ["The capital of France is", "The capital of France is ", "The capital"])
    async def test_it_goes_on_after_what_was_said(self, connector: LlmConnector, said: str) -> None:
        text = text_of(await events_of(connector, request_of(connector, CAPITAL, said=said)))
        assert "The capital" not in text
        assert "Paris" in text
        assert (said + text).startswith("The capital of France is")

    async def test_closing_is_no_end_for_the_others(self, connector: LlmConnector) -> None:
        reply = connector.reply(request_of(connector, "Count from one to three hundred.", max_tokens=2000))
        assert isinstance(await anext(reply), TextDelta)
        await reply.aclose()  # type: ignore[attr-defined]
        assert await events_of(connector, request_of(connector, "Say hello.", max_tokens=5))

    async def test_cancelling_stops_the_writing(self, connector: LlmConnector) -> None:
        request = request_of(connector, "Count from one to three hundred.", max_tokens=2000)
        task = asyncio.create_task(events_of(connector, request))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await events_of(connector, request_of(connector, "Say hello.", max_tokens=5))

    async def test_conversations_run_side_by_side(self, connector: LlmConnector) -> None:
        cities = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
        requests = [request_of(connector, f"What is the capital of {country}?") for country in cities]
        answers = await asyncio.gather(*(events_of(connector, request) for request in requests))
        for city, events in zip(cities.values(), answers, strict=True):
            assert city in text_of(events)

    async def test_the_event_loop_goes_on(self, connector: LlmConnector) -> None:
        task = asyncio.create_task(events_of(connector, request_of(connector, "Tell me a story.", max_tokens=20)))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert turns > 20

    async def test_a_huge_prompt_does_no_harm(self, connector: LlmConnector) -> None:
        request = request_of(connector, "hello " * 100_000, system="Be kind. " * 100, max_tokens=3)
        assert isinstance((await events_of(connector, request))[-1], ReplyDone)

    @pytest.mark.parametrize("text", ["", "\x00\x1b", "broken \ud83d", "<|im_end|><|im_start|>", "😀 你好 Привет"])
    async def test_odd_text_does_no_harm(self, connector: LlmConnector, text: str) -> None:
        assert isinstance((await events_of(connector, request_of(connector, text, max_tokens=3)))[-1], ReplyDone)

    def test_it_names_its_model(self, connector: LlmConnector) -> None:
        assert connector.model(connector.options())

    def test_unknown_options_are_refused(self, connector: LlmConnector) -> None:
        with pytest.raises(ValidationError):
            connector.options.model_validate({"no_such_option": 1})


class TestLocalLlm:
    @pytest.fixture
    def local(self, connector: LlmConnector) -> LocalLlm:
        if not isinstance(connector, LocalLlm):
            pytest.skip("for the local connector only")
        return connector

    async def test_closing_stops_the_writing(self, local: LocalLlm) -> None:
        (engine,) = local._engines._loaded.values()
        task = "Write a long Python program with many functions."
        reply = local.reply(request_of(local, task, system="You write code.", max_tokens=2000))
        await anext(reply)
        assert any(slot.busy for slot in engine._slots)
        await reply.aclose()
        async with asyncio.timeout(5):
            while any(slot.busy for slot in engine._slots):
                await asyncio.sleep(0.01)

    async def test_a_seed_makes_it_repeat_itself(self, local: LocalLlm) -> None:
        request = request_of(local, "Invent a story about a fox.", temperature=2.0, seed=7, max_tokens=30)
        first, *others = [text_of(await events_of(local, request)) for _ in range(3)]
        assert others == [first, first]

    async def test_what_was_read_is_not_read_again(self, local: LocalLlm) -> None:
        history = [f"Note number {n}: the blue parcel is in room {n}." for n in range(9)]
        await events_of(local, request_of(local, *history, max_tokens=1))
        await events_of(local, request_of(local, "Something else.", max_tokens=1))
        before = time.process_time()
        await events_of(local, request_of(local, *history, "Fine.", "Thank you.", max_tokens=1))
        again = time.process_time() - before
        before = time.process_time()
        await events_of(local, request_of(local, *(note[::-1] for note in history), max_tokens=1))
        assert again < (time.process_time() - before) / 3

    @pytest.mark.parametrize("garbage", [b"", b"no model at all" * 100, b"GGUF" + bytes(200)])
    async def test_a_damaged_file_is_named(self, local: LocalLlm, tmp_path: Path, garbage: bytes) -> None:
        (tmp_path / "own.gguf").write_bytes(garbage)
        with pytest.raises(ModelError, match=r"own.gguf cannot be loaded"):
            await events_of(local, request_of(local, "Hello", model=str(tmp_path / "own.gguf")))

    async def test_a_model_that_is_not_there_is_named(self, local: LocalLlm) -> None:
        with pytest.raises(ModelError, match="neither a known llm model"):
            await events_of(local, request_of(local, "Hello", model="gpt-none"))

    def test_nobody_can_reach_the_server_inside(self, local: LocalLlm) -> None:
        (engine,) = local._engines._loaded.values()
        address = engine._server.listening_address
        assert address.startswith("unix://")
        assert not Path(address.removeprefix("unix://")).exists()

    def test_without_its_model_it_says_what_to_do(self, tmp_path: Path) -> None:
        availability = LocalLlm(tmp_path).availability()
        assert not availability.available
        assert f"meshag models pull {DEFAULT_LLM}" in availability.detail

    def test_the_small_model_stands_in_and_that_is_said(self, tmp_path: Path) -> None:
        small = find(SMALL_LLM)
        store.home(small, tmp_path).mkdir(parents=True)
        with (store.home(small, tmp_path) / small.files[0].name).open("wb") as file:
            file.truncate(small.size_bytes)
        availability = LocalLlm(tmp_path).availability()
        assert availability.available
        assert availability.detail.startswith(small.title)
        assert f"in place of {DEFAULT_LLM}" in availability.detail
        assert LocalLlm(tmp_path).model(LocalLlmOptions()) == small.title
