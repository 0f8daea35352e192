"""Anthropic's messages."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
from pydantic import Field, model_validator

from meshag.connectors.contracts import (
    GO_ON,
    Availability,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Message,
    Options,
    ReplyDone,
    TextDelta,
    Tool,
)
from meshag.connectors.http import Http, counted, failure_inside, host_of, read_out, server_events
from meshag.connectors.tool_calls import OpenCalls, as_object, id_for_all, schema, thinking
from meshag.errors import ProviderGarbage, ProviderRejected
from meshag.settings import Settings

VERSION = "2023-06-01"
"""Of the protocol. The one after it has no temperature."""

SILENCE = "(The caller says nothing.)"
"""In place of a message where the vendor wants one of the user's and there is none."""

STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What an error inside a stream would have been as the answer's status; 500 where it is not named."""


class AnthropicLlmOptions(Options):
    """What a session may ask of Anthropic."""

    model: str = Field("claude-haiku-4-5", min_length=1, max_length=200)
    """The model's name. Default: claude-haiku-4-5, which answers fast."""

    temperature: float | None = Field(None, ge=0.0, le=1.0)
    """0: always the likeliest word. Default: the model's own. The newest models refuse it."""

    top_p: float | None = Field(None, ge=0.0, le=1.0)
    """Only words out of this share of the probability; not beside `temperature`. Default: the model's own."""

    max_tokens: int = Field(1024, ge=1, le=64_000)
    """Length of an answer, tokens, 1 to 64,000."""

    stop: list[str] | None = Field(None, min_length=1, max_length=8)
    """One to eight texts at which an answer ends. Default: none."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "AnthropicLlmOptions":
        if self.temperature is not None and self.top_p is not None:
            raise ValueError("temperature or top_p, not both")
        return self


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Event)


class AnthropicLlm(LlmConnector):
    """A model behind the messages API."""

    name = "anthropic"
    options = AnthropicLlmOptions
    tools: ClassVar[bool] = True

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.anthropic_api_key.get_secret_value().strip()
        self._base_url = settings.anthropic_base_url.rstrip("/").removesuffix("/v1")
        self._http = Http(self.name)

    def availability(self) -> Availability:
        """With a key."""
        host = host_of(self._base_url)
        if not host:
            return Availability(False, "ANTHROPIC_BASE_URL is no address like https://api.anthropic.com")
        if not self._key:
            return Availability(False, "set ANTHROPIC_API_KEY")
        if not (self._key.isascii() and self._key.isprintable()):
            return Availability(False, "ANTHROPIC_API_KEY holds characters that no key has")
        return Availability(True, host)

    async def probe(self, options: Options) -> None:
        """A word about nothing."""
        assert isinstance(options, AnthropicLlmOptions)
        short = options.model_copy(update={"max_tokens": 1, "stop": None})
        async for _ in self.reply(LlmRequest("", [Message("user", "ping")], short)):
            pass

    async def aclose(self) -> None:
        await self._http.aclose()

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        """The answer as it is streamed. Closing the iterator closes its connection, which stops the generation."""
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "anthropic-version": VERSION,
            "x-api-key": self._key,
        }
        calls = OpenCalls(self.name)
        reason, said, called, input_tokens, output_tokens = "", False, False, 0, 0
        async with (
            self._http.request(
                "POST", f"{self._base_url}/v1/messages", headers=headers, json=body_of(request)
            ) as answer,
            aclosing(server_events(self.name, answer)) as events,
        ):
            async for data in events:
                event = decoded(data)
                kind = event.type
                if kind == "content_block_delta" and (delta := event.delta) is not None:
                    if text := delta.text:
                        said = True
                        yield TextDelta(text)
                    elif delta.partial_json:
                        calls.write(event.index, delta.partial_json)
                    for sign in thinking(delta.partial_json or delta.thinking):
                        yield sign
                elif kind == "content_block_start" and (block := event.content_block) is not None:
                    if block.type == "tool_use":
                        begin(calls, event.index, block)
                    elif block.type == "text" and block.text:
                        said = True
                        yield TextDelta(block.text)
                elif kind == "content_block_stop":
                    for call in calls.complete():
                        called = True
                        yield call
                elif kind == "message_start" and event.message is not None:
                    input_tokens = input_of(event.message.usage) or input_tokens
                elif kind == "message_delta":
                    reason = (event.delta.stop_reason if event.delta else None) or reason
                    input_tokens = input_of(event.usage) or input_tokens
                    output_tokens = counted(event.usage.output_tokens if event.usage else None) or output_tokens
                elif kind == "message_stop":
                    reason = reason or "end_turn"
                    break
                elif kind == "error":
                    raise failure_inside(self.name, bytes(event.error), STATUS)
            await read_out(answer)
        if not reason:
            raise ProviderGarbage(f"{self.name}: an answer without an end")
        cut = reason in ("max_tokens", "model_context_window_exceeded")
        for call in calls.rest(cut=cut):
            called = True
            yield call
        if reason == "refusal" and not (said or called):
            raise ProviderRejected(f"{self.name}: refusal")
        yield ReplyDone("length" if cut else "tools" if called else "stop", input_tokens, output_tokens)


# -- what is asked ----------------------------------------------------------------------------------------------------


def body_of(request: LlmRequest) -> dict[str, Any]:
    """The request."""
    options = request.options
    assert isinstance(options, AnthropicLlmOptions)
    body: dict[str, Any] = {
        "model": options.model,
        "max_tokens": options.max_tokens,
        "messages": messages_of(request),
        "stream": True,
    }
    tools = request.tools
    if not tools and (names := dict.fromkeys(call.name for message in request.messages for call in message.calls)):
        # Calls in the conversation are refused where no function is declared.
        tools = [Tool(name, "", {}) for name in names]
        body["tool_choice"] = {"type": "none"}
    if tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": schema(tool.parameters)}
            for tool in tools
        ]
    chosen: dict[str, Any] = {
        "system": request.system if request.system.strip() else None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "stop_sequences": options.stop,
    }
    return body | {name: value for name, value in chosen.items() if value is not None}


def messages_of(request: LlmRequest) -> list[dict[str, Any]]:
    """The conversation: user and assistant in turn, the user first and last, and no blank text, which is refused."""
    messages: list[dict[str, Any]] = []

    def add(role: str, blocks: list[dict[str, Any]]) -> None:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})

    for message in request.messages:
        if message.role == "tool":
            answer = {"type": "tool_result", "tool_use_id": id_for_all(message.call_id), "content": message.text}
            add("user", [answer])
            continue
        calls = [
            {"type": "tool_use", "id": id_for_all(call.id), "name": call.name, "input": as_object(call.arguments) or {}}
            for call in message.calls
        ]
        add(message.role, text_blocks(message.text) + calls)
    if request.said.strip():
        add("assistant", text_blocks(request.said))
        add("user", text_blocks(GO_ON))
    if not messages or messages[0]["role"] != "user":
        messages.insert(0, {"role": "user", "content": text_blocks(SILENCE)})
    if messages[-1]["role"] != "user":
        add("user", text_blocks(SILENCE))
    return messages


def text_blocks(text: str) -> list[dict[str, Any]]:
    """The content block of a text; none for one that is blank."""
    return [{"type": "text", "text": text}] if text.strip() else []


# -- what is answered -------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> _Event:
    """An event of the stream. Raises ProviderGarbage when it is none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise ProviderGarbage("anthropic: not an event of an answer") from None


def begin(calls: OpenCalls, index: int, block: _Block) -> None:
    """A call begins. Its arguments are streamed after it, or stand in it already."""
    calls.begin(index, block.id or "", block.name or "")
    whole = bytes(block.input).decode("utf-8", "replace")
    if as_object(whole):
        calls.write(index, whole)


def input_of(usage: _Usage | None) -> int:
    """What was read, tokens: what was found in the vendor's cache is not counted in `input_tokens`."""
    if usage is None:
        return 0
    parts = (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
    return sum(map(counted, parts))
