"""The connector `anthropic`."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from meshag.connectors.contracts import GO_ON, LlmRequest, Message, ReplyDone, TextDelta, Thinking, ToolCall
from meshag.connectors.llm.anthropic import SILENCE, AnthropicLlm, AnthropicLlmOptions, messages_of
from meshag.errors import ProviderGarbage, ProviderLimited, ProviderRejected, ProviderUnavailable
from vendors import fuzz
from vendors.anthropic import AnthropicStandIn
from vendors.llm_contract import (
    KEY,
    SYSTEM,
    Connect,
    VendorLlmContract,
    all_of,
    answer_of,
    events_from,
    events_of,
    request_of,
)

pytestmark = pytest.mark.contract


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicStandIn]:
    async with AnthropicStandIn(KEY) as vendor:
        yield vendor  # type: ignore[misc]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connect(url: str) -> AnthropicLlm:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        return AnthropicLlm()

    return connect


def event(kind: str, **more: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **more}))


def text(words: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


def end(reason: str | None) -> bytes:
    return event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 3})


STOP = event("message_stop")


def roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


class TestAnthropic(VendorLlmContract):
    documented = [{}, {"model": "claude-sonnet-4-5", "temperature": 0.7}, {"top_p": 0.9, "stop": ["END"]}]  # noqa: RUF012

    # -- what is asked ------------------------------------------------------------------------------------------------

    async def test_the_request(self, vendor: AnthropicStandIn, connector: AnthropicLlm) -> None:
        await events_of(connector, request_of(connector, "Hello", "Hi.", "Weather?"))
        (request,) = vendor.requests
        assert request["headers"]["x-api-key"] == KEY
        assert request["headers"]["anthropic-version"] == "2023-06-01"
        assert request["body"] == {
            "model": "claude-haiku-4-5",
            "max_tokens": 1024,
            "system": SYSTEM,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]},
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            ],
            "stream": True,
        }

    async def test_the_options_on_the_wire(self, vendor: AnthropicStandIn, connector: AnthropicLlm) -> None:
        options = {"temperature": 0.0, "max_tokens": 9, "stop": ["END"]}
        await events_of(connector, request_of(connector, options=options))
        body = vendor.requests[0]["body"]
        assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.0, 9, ["END"])

    def test_answers_of_functions_are_one_message_of_the_users(self) -> None:
        calls = [ToolCall("c1", "f", '{"a":1}'), ToolCall("c2", "g", "no JSON")]
        conversation = [
            Message("user", "Hello"),
            Message("assistant", "One moment.", calls),
            Message("tool", "1", call_id="c1"),
            Message("tool", "", call_id="c2"),
        ]
        told = messages_of(LlmRequest("", conversation, AnthropicLlmOptions(), said="So"))
        assert roles(told) == ["user", "assistant", "user", "assistant", "user"]
        assert told[1]["content"] == [
            {"type": "text", "text": "One moment."},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
        ]
        assert told[2]["content"] == [
            {"type": "tool_result", "tool_use_id": "c1", "content": "1"},
            {"type": "tool_result", "tool_use_id": "c2", "content": ""},
        ]
        assert told[4]["content"] == [{"type": "text", "text": GO_ON}]

    @pytest.mark.parametrize(
        ("conversation", "wanted"),
        [
            ([], [("user", [SILENCE])]),
            ([("user", " ")], [("user", [SILENCE])]),
            ([("assistant", "Hello!")], [("user", [SILENCE]), ("assistant", ["Hello!"]), ("user", [SILENCE])]),
            ([("user", "a"), ("user", "b")], [("user", ["a", "b"])]),
            ([("user", "a"), ("assistant", ""), ("user", "b")], [("user", ["a", "b"])]),
        ],
    )
    async def test_user_and_assistant_take_turns(
        self, vendor: AnthropicStandIn, connector: AnthropicLlm, conversation: Any, wanted: Any
    ) -> None:
        request = LlmRequest(" ", [Message(role, words) for role, words in conversation], AnthropicLlmOptions())
        told = messages_of(request)
        assert [(message["role"], [block["text"] for block in message["content"]]) for message in told] == wanted
        await events_of(connector, request)
        assert "system" not in vendor.requests[0]["body"]

    async def test_calls_of_the_past_need_a_declaration(
        self, vendor: AnthropicStandIn, connector: AnthropicLlm
    ) -> None:
        then = [Message("assistant", "", [ToolCall("c1", "f", "")]), Message("tool", "1", call_id="c1")]
        await events_of(connector, request_of(connector, "Hello", then=then))
        body = vendor.requests[0]["body"]
        assert [tool["name"] for tool in body["tools"]] == ["f"]
        assert body["tool_choice"] == {"type": "none"}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"temperature": 1.1},
            {"temperature": 0.5, "top_p": 0.5},
            {"max_tokens": 0},
            {"model": ""},
            {"stop": []},
            {"api_key": "sk-1"},
        ],
    )
    def test_wrong_options_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            AnthropicLlmOptions.model_validate(wrong)

    # -- what is answered ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("reason", "wanted"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("refusal", "stop"),
            ("something_new", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            (None, "stop"),
        ],
    )
    async def test_why_it_stops(self, connect: Connect, reason: str | None, wanted: Any) -> None:
        events = await events_from(connect, [text("Yes."), end(reason), STOP])
        assert events == [TextDelta("Yes."), ReplyDone(wanted, output_tokens=3)]

    async def test_a_refusal_without_words_is_one(self, connect: Connect) -> None:
        with pytest.raises(ProviderRejected):
            await events_from(connect, [end("refusal"), STOP])

    async def test_an_answer_without_an_end_is_none(self, connect: Connect) -> None:
        with pytest.raises(ProviderGarbage):
            await events_from(connect, [text("Yes.")])

    async def test_its_thoughts_are_signs_of_life(self, connect: Connect) -> None:
        thoughts = [event("content_block_start", content_block={"type": "thinking", "thinking": ""})]
        thoughts += [
            event("content_block_delta", delta={"type": "thinking_delta", "thinking": thought})
            for thought in ("Well", "", " ", " then.")
        ]
        stream = answer_of([*thoughts, text("Yes."), end("end_turn"), STOP])
        async with fuzz.Babbler(lambda: stream) as server:
            connector = connect(server.url)
            found = await all_of(connector)
            await connector.aclose()
        assert found[:-1] == [Thinking(4), Thinking(6), TextDelta("Yes.")]

    async def test_what_it_does_not_know_is_passed_over(self, connect: Connect) -> None:
        strange = [
            event("ping"),
            event("something_new", index=5, delta={"type": "new", "what": [1]}),
            event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
            event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"}),
            event("content_block_stop", index=0),
        ]
        events = await events_from(connect, [*strange, text("Yes."), end("end_turn"), STOP])
        assert events == [TextDelta("Yes."), ReplyDone("stop", output_tokens=3)]

    async def test_arguments_that_are_there_from_the_beginning(self, connect: Connect) -> None:
        block = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
        start = event("content_block_start", index=0, content_block=block)
        events = await events_from(connect, [start, event("content_block_stop", index=0), end("tool_use"), STOP])
        assert events[0] == ToolCall("c1", "f", '{"a":1}')

    async def test_what_was_cached_counts_as_read(self, connect: Connect) -> None:
        usage = {"input_tokens": 5, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 3, "output_tokens": 1}
        start = event("message_start", message={"usage": usage})
        events = await events_from(connect, [start, text("Yes."), end("end_turn"), STOP])
        assert events[-1] == ReplyDone("stop", 28, 3)

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            ("overloaded_error", ProviderUnavailable),
            ("api_error", ProviderUnavailable),
            ("timeout_error", ProviderUnavailable),
            ("something_new", ProviderUnavailable),
            ("rate_limit_error", ProviderLimited),
            ("invalid_request_error", ProviderRejected),
            ("authentication_error", ProviderRejected),
            ("billing_error", ProviderRejected),
        ],
    )
    async def test_an_error_inside_the_stream(self, connect: Connect, kind: str, error: type[Exception]) -> None:
        failure = event("error", error={"type": kind, "message": "x"}, request_id="req_1")
        with pytest.raises(error) as caught:
            await events_from(connect, [text("Yes"), failure])
        assert type(caught.value) is error

    # -- whether it can work ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("key", "base_url", "detail"),
        [
            ("", "https://api.anthropic.com", "set ANTHROPIC_API_KEY"),
            (" ", "http://127.0.0.1:1", "set ANTHROPIC_API_KEY"),
            ("sk-1", "api.anthropic.com", "ANTHROPIC_BASE_URL"),
            ("sk-1", "http://[::1", "ANTHROPIC_BASE_URL"),
            ("sk-1", "http://host:99999", "ANTHROPIC_BASE_URL"),
            ("sk-é", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        ],
    )
    def test_what_is_missing_is_said(
        self, monkeypatch: pytest.MonkeyPatch, key: str, base_url: str, detail: str
    ) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", base_url)
        availability = AnthropicLlm().availability()
        assert not availability.available
        assert detail in availability.detail

    async def test_its_address_may_have_the_version(self, vendor: AnthropicStandIn, connect: Connect) -> None:
        connector = connect(f"{vendor.url}/v1/")
        await events_of(connector)
        await connector.aclose()
