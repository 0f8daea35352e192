"""The connector `openai` for language models."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from pydantic import ValidationError

from meshag.connectors.contracts import LlmRequest, Message, ReplyDone, TextDelta, ToolCall
from meshag.connectors.llm.openai import OpenAiLlm, OpenAiLlmOptions, body_of
from meshag.errors import ProviderGarbage, ProviderLimited, ProviderRejected, ProviderUnavailable
from vendors.llm_contract import KEY, SYSTEM, WEATHER, Connect, VendorLlmContract, events_from, events_of, request_of
from vendors.openai_llm import OpenAiLlmStandIn

pytestmark = pytest.mark.contract

DOCUMENTED = {"model": "gpt-4o", "temperature": 0.7, "max_tokens": 1000}


@pytest.fixture
async def vendor() -> AsyncIterator[OpenAiLlmStandIn]:
    async with OpenAiLlmStandIn(KEY) as vendor:
        yield vendor  # type: ignore[misc]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connect(url: str) -> OpenAiLlm:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        return OpenAiLlm()

    return connect


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"


def call_chunk(*pieces: dict[str, Any]) -> bytes:
    return chunk({"tool_calls": list(pieces)})


def error_chunk(error: Any) -> bytes:
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class TestOpenAi(VendorLlmContract):
    documented = [  # noqa: RUF012
        DOCUMENTED,
        {},
        {"model": "gpt-5-mini", "temperature": 0.7, "top_p": 0.5, "reasoning_effort": "minimal"},
        {"model": "o4-mini", "temperature": 0.7},
        {"top_p": 0.9, "seed": 7, "stop": ["END"]},
    ]

    # -- what is asked ------------------------------------------------------------------------------------------------

    async def test_servers_like_it_are_asked_for_no_more_than_they_know(
        self, vendor: OpenAiLlmStandIn, connector: OpenAiLlm
    ) -> None:
        await events_of(connector, request_of(connector, "Hello", "Hi.", "Weather?", options=DOCUMENTED))
        (request,) = vendor.requests
        assert request["headers"]["Authorization"] == f"Bearer {KEY}"
        assert request["body"] == {
            "model": "gpt-4o",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "Weather?"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.7,
            "max_tokens": 1000,
        }

    @pytest.mark.parametrize("model", ["gpt-4o", "gpt-5-mini", "o3-mini"])
    async def test_openai_itself_is_asked_in_its_newest_words(self, vendor: OpenAiLlmStandIn, model: str) -> None:
        options = OpenAiLlmOptions(model=model, temperature=0.7, max_tokens=9)
        body = body_of(LlmRequest(SYSTEM, [Message("user", "Hello")], options, tools=[WEATHER]), official=True)
        assert body["max_completion_tokens"] == 9
        assert "max_tokens" not in body
        assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            ClientSession() as http,
            http.post(f"{vendor.url}{vendor.path}", json=body, headers=headers) as answer,
        ):
            assert answer.status == 200
            assert "obfuscation" not in await answer.text()

    @pytest.mark.parametrize(
        ("model", "effort", "sent"),
        [
            ("gpt-4o", None, True),
            ("gpt-4.1-mini", None, True),
            ("llama-3.1-8b", None, True),
            ("omni-1", None, True),
            ("o1", None, False),
            ("o4-mini", None, False),
            ("gpt-5-mini", None, False),
            ("gpt-6.2-sol", "low", False),
            ("openai/gpt-5", None, False),
            ("ft:o4-mini:acme", None, False),
            ("gpt-5.4-mini", "none", True),
        ],
    )
    def test_models_that_reason_get_no_temperature(self, model: str, effort: Any, sent: bool) -> None:
        options = OpenAiLlmOptions(model=model, temperature=0.7, top_p=0.5, reasoning_effort=effort)
        body = body_of(LlmRequest("", [Message("user", "Hello")], options), official=True)
        assert ("temperature" in body, "top_p" in body) == (sent, sent)

    async def test_a_model_that_reasons_has_room_for_it_in_a_probe(
        self, vendor: OpenAiLlmStandIn, connector: OpenAiLlm
    ) -> None:
        vendor.key = ""
        await connector.probe(OpenAiLlmOptions(model="o4-mini"))
        assert vendor.requests[-1]["body"]["max_tokens"] > 100

    @pytest.mark.parametrize(
        "wrong",
        [
            {"temperature": 2.1},
            {"temperature": float("nan")},
            {"top_p": -1},
            {"max_tokens": 0},
            {"model": ""},
            {"stop": []},
            {"stop": ["a"] * 5},
            {"reasoning_effort": "much"},
            {"api_key": "sk-1"},
        ],
    )
    def test_wrong_options_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            OpenAiLlmOptions.model_validate(wrong)

    # -- what is answered ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("end", [[chunk({}, "stop")], [DONE], [chunk({}, "stop"), DONE], [chunk({}, "eos")]])
    async def test_an_answer_ends_in_several_ways(self, connect: Connect, end: list[bytes]) -> None:
        events = await events_from(connect, [chunk({"content": "Yes."}), *end])
        assert events == [TextDelta("Yes."), ReplyDone("stop")]

    async def test_an_answer_without_an_end_is_none(self, connect: Connect) -> None:
        with pytest.raises(ProviderGarbage):
            await events_from(connect, [chunk({"content": "Yes."})])

    async def test_what_is_filtered(self, connect: Connect) -> None:
        events = await events_from(connect, [chunk({"content": "Yes"}), chunk({}, "content_filter"), DONE])
        assert events == [TextDelta("Yes"), ReplyDone("stop")]
        with pytest.raises(ProviderRejected):
            await events_from(connect, [chunk({"role": "assistant"}), chunk({}, "content_filter"), DONE])

    async def test_a_refusal_is_spoken(self, connect: Connect) -> None:
        events = await events_from(connect, [chunk({"refusal": "I can't."}), chunk({}, "stop"), DONE])
        assert events[0] == TextDelta("I can't.")

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            ({"message": "x", "type": "server_error", "code": None}, ProviderUnavailable),
            ({"message": "x", "type": "tokens", "code": "rate_limit_exceeded"}, ProviderLimited),
            ({"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}, ProviderUnavailable),
            ({"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"}, ProviderRejected),
            ({"message": "x", "type": "invalid_request_error", "code": "invalid_api_key"}, ProviderRejected),
            ({"message": "x", "type": "BadRequestError", "code": 400}, ProviderRejected),
            ("overloaded", ProviderUnavailable),
            ({}, ProviderUnavailable),
        ],
    )
    async def test_an_error_inside_the_stream(self, connect: Connect, error: Any, kind: type[Exception]) -> None:
        with pytest.raises(kind) as caught:
            await events_from(connect, [chunk({"content": "Yes"}), error_chunk(error), DONE])
        assert type(caught.value) is kind

    async def test_a_stream_that_broke_off_says_so(self, connect: Connect) -> None:
        with pytest.raises(ProviderUnavailable):
            await events_from(connect, [chunk({"content": "Yes"}), chunk({}, "error"), DONE])

    # -- how other servers call functions -----------------------------------------------------------------------------

    async def test_calls_without_an_index(self, connect: Connect) -> None:
        calls = [{"id": f"c{n}", "function": {"name": "f", "arguments": f'{{"n":{n}}}'}} for n in range(3)]
        for pieces in ([call_chunk(*calls)], [call_chunk(call) for call in calls]):
            events = await events_from(connect, [*pieces, chunk({}, "stop"), DONE])
            assert events == [*(ToolCall(f"c{n}", "f", f'{{"n":{n}}}') for n in range(3)), ReplyDone("tools")]

    async def test_calls_whose_pieces_are_mixed(self, connect: Connect) -> None:
        begun = [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": ""}} for n in range(2)]
        rest = [{"index": n, "function": {"arguments": part}} for part in ('{"n"', ":1}") for n in range(2)]
        events = await events_from(connect, [*map(call_chunk, [*begun, *rest]), chunk({}, "tool_calls"), DONE])
        assert events == [ToolCall("c0", "f", '{"n":1}'), ToolCall("c1", "f", '{"n":1}'), ReplyDone("tools")]

    async def test_a_call_whose_id_is_repeated_or_missing(self, connect: Connect) -> None:
        pieces = [{"index": 0, "id": "c0", "function": {"name": "f", "arguments": part}} for part in ('{"n"', ":1}")]
        events = await events_from(connect, [*map(call_chunk, pieces), chunk({}, "tool_calls"), DONE])
        assert events[0] == ToolCall("c0", "f", '{"n":1}')
        nameless = [{"index": n, "id": "", "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
        first, second, _ = await events_from(connect, [call_chunk(*nameless), chunk({}, "tool_calls"), DONE])
        assert first.id != second.id  # type: ignore[union-attr]

    async def test_arguments_of_nothing_are_garbage(self, connect: Connect) -> None:
        with pytest.raises(ProviderGarbage):
            await events_from(connect, [call_chunk({"index": 0, "function": {"arguments": "{"}}), DONE])

    # -- whether it can work ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("key", "base_url", "detail"),
        [
            ("", "https://api.openai.com/v1", "set OPENAI_API_KEY"),
            (" \n", "https://eu.api.openai.com/v1/", "set OPENAI_API_KEY"),
            ("sk-1", "api.openai.com", "OPENAI_BASE_URL"),
            ("sk-1", "ftp://api.openai.com", "OPENAI_BASE_URL"),
            ("sk-1", "http://[::1", "OPENAI_BASE_URL"),
            ("sk-1", "http://host:99999", "OPENAI_BASE_URL"),
            ("sk-1", "", "OPENAI_BASE_URL"),
            ("sk-é", "https://api.openai.com/v1", "OPENAI_API_KEY"),
            ("sk-\n1", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        ],
    )
    def test_what_is_missing_is_said(
        self, monkeypatch: pytest.MonkeyPatch, key: str, base_url: str, detail: str
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        availability = OpenAiLlm().availability()
        assert not availability.available
        assert detail in availability.detail

    async def test_a_server_of_ones_own_needs_no_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with OpenAiLlmStandIn("") as own:
            monkeypatch.setenv("OPENAI_API_KEY", "")
            monkeypatch.setenv("OPENAI_BASE_URL", f"{own.url}/v1")
            connector = OpenAiLlm()
            assert connector.availability().available
            await events_of(connector)
            assert "Authorization" not in own.requests[0]["headers"]
            await connector.aclose()
