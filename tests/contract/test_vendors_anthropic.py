"""The stand-in for Anthropic's messages, proven with Anthropic's SDK."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from vendors.anthropic import AnthropicStandIn
from vendors.writing import SENTENCES, TOKENS

pytestmark = pytest.mark.contract

MODEL = "claude-haiku-4-5"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOLS: list[Any] = [{"name": "f", "description": "", "input_schema": {"type": "object", "properties": {}}}]
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
OLD = {"anthropic-version": "2023-06-01"}


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicStandIn]:
    async with AnthropicStandIn() as vendor:
        yield vendor  # type: ignore[misc]


@pytest.fixture
async def sdk(vendor: AnthropicStandIn) -> AsyncIterator[anthropic.AsyncAnthropic]:
    client = anthropic.AsyncAnthropic(api_key="sk-test", base_url=vendor.url, max_retries=0, timeout=5)
    yield client
    await client.close()


async def test_it_streams(sdk: anthropic.AsyncAnthropic) -> None:
    stream = await sdk.messages.create(model=MODEL, max_tokens=100, messages=HELLO, stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == SENTENCES  # type: ignore[union-attr]


async def test_its_stream_is_a_message(sdk: anthropic.AsyncAnthropic) -> None:
    async with sdk.messages.stream(model=MODEL, max_tokens=100, system="Be kind.", messages=HELLO) as stream:
        assert await stream.get_final_text() == SENTENCES
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == len(TOKENS)


async def test_it_answers_as_a_whole(sdk: anthropic.AsyncAnthropic) -> None:
    answer = await sdk.messages.create(model=MODEL, max_tokens=3, messages=HELLO)
    assert answer.content[0].text == "Sure, I can"  # type: ignore[union-attr]
    assert answer.stop_reason == "max_tokens"


async def test_it_calls_functions(vendor: AnthropicStandIn, sdk: anthropic.AsyncAnthropic) -> None:
    vendor.calls = [{"name": "f", "arguments": {"n": 1}}, {"name": "f", "arguments": {"n": 2}}]
    async with sdk.messages.stream(model=MODEL, max_tokens=100, messages=HELLO, tools=TOOLS) as stream:
        message = await stream.get_final_message()
    assert message.stop_reason == "tool_use"
    assert [block.input for block in message.content] == [{"n": 1}, {"n": 2}]  # type: ignore[union-attr]
    uses = [{"type": "tool_use", "id": block.id, "name": "f", "input": {}} for block in message.content]  # type: ignore[union-attr]
    answers = [{"type": "tool_result", "tool_use_id": use["id"], "content": "1"} for use in uses]
    told: list[Any] = [*HELLO, {"role": "assistant", "content": uses}, {"role": "user", "content": answers}]
    answer = await sdk.messages.create(model=MODEL, max_tokens=100, messages=told, tools=TOOLS)
    assert answer.content[0].text == SENTENCES  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": "claude-none"}, anthropic.NotFoundError),
        ({"max_tokens": -1}, anthropic.BadRequestError),
        ({"extra_headers": {"anthropic-version": "2020-01-01"}}, anthropic.BadRequestError),
        ({"extra_headers": {"anthropic-version": anthropic.Omit()}}, anthropic.BadRequestError),
        ({"extra_body": {"no_such_thing": 1}}, anthropic.BadRequestError),
        ({"extra_body": {"temperature": 1.0}}, anthropic.BadRequestError),
        ({"extra_body": {"temperature": 0.5, "top_p": 0.5}, "extra_headers": OLD}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": " "}]}, anthropic.BadRequestError),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hello "}]}, anthropic.BadRequestError),
        ({"messages": [*HELLO, {"role": "assistant", "content": [USE]}], "tools": TOOLS}, anthropic.BadRequestError),
        (
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": ""}]},
                ]
            },
            anthropic.BadRequestError,
        ),
    ],
)
async def test_it_refuses(sdk: anthropic.AsyncAnthropic, wrong: Any, error: type[anthropic.APIStatusError]) -> None:
    with pytest.raises(error) as caught:
        await sdk.messages.create(**{"model": MODEL, "max_tokens": 9, "messages": HELLO, **wrong})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"


async def test_the_older_protocol_has_a_temperature(sdk: anthropic.AsyncAnthropic) -> None:
    body = {"temperature": 0.5}
    await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO, extra_body=body, extra_headers=OLD)


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ({"status": 401}, anthropic.AuthenticationError),
        ({"status": 429, "retry_after": "3"}, anthropic.RateLimitError),
        ({"status": 529}, anthropic.APIStatusError),
        ({"refuse": True}, anthropic.APIConnectionError),
    ],
)
async def test_it_fails_on_demand(
    vendor: AnthropicStandIn, sdk: anthropic.AsyncAnthropic, faults: dict[str, Any], error: type[Exception]
) -> None:
    vendor.faults.set(**faults)
    with pytest.raises(error) as caught:
        await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    if isinstance(caught.value, anthropic.RateLimitError):
        assert caught.value.response.headers["retry-after"] == "3"


async def test_it_asks_for_its_key(vendor: AnthropicStandIn, sdk: anthropic.AsyncAnthropic) -> None:
    vendor.key = "another"
    with pytest.raises(anthropic.AuthenticationError):
        await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)


async def test_it_fails_inside_the_stream(vendor: AnthropicStandIn, sdk: anthropic.AsyncAnthropic) -> None:
    vendor.faults.set(error_after=2)
    stream = await sdk.messages.create(model=MODEL, max_tokens=100, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in stream:
            pass
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


@pytest.fixture
def process_url() -> Iterator[str]:
    """The stand-in as a process of its own."""
    command = [sys.executable, "-m", "vendors.anthropic", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()
    assert process.returncode == 0


async def test_it_is_a_process_too(process_url: str) -> None:
    async with anthropic.AsyncAnthropic(api_key="sk-test", base_url=process_url, max_retries=0) as sdk:
        await sdk.post("/__reply", body={"tokens": ["a", "b"]}, cast_to=object)
        answer = await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        assert answer.content[0].text == "ab"  # type: ignore[union-attr]
        await sdk.post("/__faults", body={"status": 529}, cast_to=object)
        with pytest.raises(anthropic.APIStatusError):
            await sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
