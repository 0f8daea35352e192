"""The stand-in for OpenAI's chat completions, proven with OpenAI's SDK."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from vendors.openai_llm import OpenAiLlmStandIn
from vendors.writing import SENTENCES

pytestmark = pytest.mark.contract

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "description": "", "parameters": SCHEMA}}]
CALLED = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.fixture
async def vendor() -> AsyncIterator[OpenAiLlmStandIn]:
    async with OpenAiLlmStandIn() as vendor:
        yield vendor  # type: ignore[misc]


@pytest.fixture
async def sdk(vendor: OpenAiLlmStandIn) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(api_key="sk-test", base_url=f"{vendor.url}/v1", max_retries=0, timeout=5)
    yield client
    await client.close()


async def test_it_streams(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == SENTENCES
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(chunks) - 3


async def test_it_answers_as_a_whole(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="gpt-4o", messages=HELLO, max_completion_tokens=3)
    assert answer.choices[0].message.content == "Sure, I can"
    assert answer.choices[0].finish_reason == "length"


async def test_it_calls_functions(vendor: OpenAiLlmStandIn, sdk: openai.AsyncOpenAI) -> None:
    vendor.calls = [{"name": "f", "arguments": {"n": 1}}, {"name": "f", "arguments": {"n": 2}}]
    async with sdk.chat.completions.stream(model="gpt-4o", messages=HELLO, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0]
    assert message.finish_reason == "tool_calls"
    assert [call.function.arguments for call in message.message.tool_calls or ()] == ['{"n":1}', '{"n":2}']
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "1"} for call in message.message.tool_calls or ()]
    told: list[Any] = [*HELLO, message.message.model_dump(exclude_none=True, exclude={"parsed"}), *answers]
    answer = await sdk.chat.completions.create(model="gpt-4o", messages=told, tools=TOOLS)
    assert answer.choices[0].message.content == SENTENCES


async def test_it_lists_its_models(sdk: openai.AsyncOpenAI) -> None:
    assert "gpt-4o" in [model.id async for model in sdk.models.list()]


@pytest.mark.parametrize(
    ("wrong", "error", "code"),
    [
        ({"model": "gpt-none"}, openai.NotFoundError, "model_not_found"),
        ({"extra_body": {"no_such_thing": 1}}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, "empty_array"),
        ({"temperature": 3}, openai.BadRequestError, "decimal_out_of_range"),
        ({"model": "gpt-5-mini", "temperature": 0.5}, openai.BadRequestError, "unsupported_value"),
        ({"model": "o3-mini", "max_tokens": 5}, openai.BadRequestError, "unsupported_parameter"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": CALLED}]}, openai.BadRequestError, None),
        ({"messages": [{"role": "tool", "tool_call_id": "c1", "content": ""}]}, openai.BadRequestError, None),
        ({"messages": [{"role": "narrator", "content": ""}]}, openai.BadRequestError, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, openai.BadRequestError, "invalid_value"),
    ],
)
async def test_it_refuses(sdk: openai.AsyncOpenAI, wrong: Any, error: type[openai.APIStatusError], code: Any) -> None:
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(**{"model": "gpt-4o", "messages": HELLO, **wrong})
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ({"status": 401}, openai.AuthenticationError),
        ({"status": 429, "retry_after": "3"}, openai.RateLimitError),
        ({"status": 503}, openai.InternalServerError),
        ({"refuse": True}, openai.APIConnectionError),
    ],
)
async def test_it_fails_on_demand(
    vendor: OpenAiLlmStandIn, sdk: openai.AsyncOpenAI, faults: dict[str, Any], error: type[Exception]
) -> None:
    vendor.faults.set(**faults)
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
    if isinstance(caught.value, openai.RateLimitError):
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "3"


async def test_it_asks_for_its_key(vendor: OpenAiLlmStandIn, sdk: openai.AsyncOpenAI) -> None:
    vendor.key = "another"
    with pytest.raises(openai.AuthenticationError):
        await sdk.models.list()


async def test_it_fails_inside_the_stream(vendor: OpenAiLlmStandIn, sdk: openai.AsyncOpenAI) -> None:
    vendor.faults.set(error_after=2, code="server_error")
    stream = await sdk.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
    words = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
    assert words == ["", "Sure,", " I"]
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert caught.value.code == "server_error"


@pytest.fixture
def process_url() -> Iterator[str]:
    """The stand-in as a process of its own."""
    command = [sys.executable, "-m", "vendors.openai_llm", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()
    assert process.returncode == 0


async def test_it_is_a_process_too(process_url: str) -> None:
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{process_url}/v1", max_retries=0) as sdk:
        root = sdk.with_options(base_url=process_url)
        await root.post("/__reply", body={"tokens": ["a", "b"]}, cast_to=object)
        answer = await sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.choices[0].message.content == "ab"
        await root.post("/__faults", body={"status": 500}, cast_to=object)
        with pytest.raises(openai.InternalServerError):
            await sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
