"""OpenAI's chat completions, and every server that speaks them (OPENAI_BASE_URL)."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import Field

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
    Thinking,
    Tool,
    ToolCall,
)
from meshag.connectors.http import Http, counted, failure_inside, host_of, read_out, server_events
from meshag.connectors.tool_calls import OpenCalls, as_object, id_for_all, schema, thinking
from meshag.errors import ProviderGarbage, ProviderRejected, ProviderUnavailable
from meshag.settings import Settings

REASONING = re.compile(r"(ft:)?(o\d|gpt-[5-9])")
"""Models that think before they answer. They refuse `temperature` and the like, unless told not to think."""

PROBE_TOKENS, PROBE_TOKENS_REASONING = 1, 256
"""A model that thinks needs room for that, or the request is refused."""

STATUS = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
    "model_not_found": 404,
    "BadRequestError": 400,
}
"""What an error inside a stream would have been as the answer's status; 500 where it is not named."""


class OpenAiLlmOptions(Options):
    """What a session may ask of OpenAI."""

    model: str = Field("gpt-4o", min_length=1, max_length=200)
    """The model's name. Default: gpt-4o."""

    temperature: float | None = Field(None, ge=0.0, le=2.0)
    """0: always the likeliest word, 2: anything goes. Default: the model's own. Not sent to models that reason."""

    top_p: float | None = Field(None, ge=0.0, le=1.0)
    """Only words out of this share of the probability. Default: the model's own. Not sent to models that reason."""

    max_tokens: int | None = Field(None, ge=1, le=200_000)
    """Length of an answer, tokens, 1 to 200,000, what a model thinks included. Default: no limit but the model's."""

    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    """The same seed and conversation mostly give the same answer. Default: chance."""

    stop: list[str] | None = Field(None, min_length=1, max_length=4)
    """One to four texts at which an answer ends. Default: none. Models that reason refuse it."""

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How long a model that reasons may think before it speaks. Default: its own, which is long for a conversation."""


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Chunk)


class OpenAiLlm(LlmConnector):
    """A model behind the chat completions API."""

    name = "openai"
    options = OpenAiLlmOptions
    tools: ClassVar[bool] = True

    def __init__(self) -> None:
        settings = Settings()
        self._key = settings.openai_api_key.get_secret_value().strip()
        self._base_url = settings.openai_base_url.rstrip("/")
        self._http = Http(self.name)

    def availability(self) -> Availability:
        """With a key; a server of one's own may need none."""
        host = host_of(self._base_url)
        if not host:
            return Availability(False, "OPENAI_BASE_URL is no address like https://api.openai.com/v1")
        if not self._key and is_official(self._base_url):
            return Availability(False, "set OPENAI_API_KEY")
        if not (self._key.isascii() and self._key.isprintable()):
            return Availability(False, "OPENAI_API_KEY holds characters that no key has")
        return Availability(True, host)

    async def probe(self, options: Options) -> None:
        """A word about nothing."""
        assert isinstance(options, OpenAiLlmOptions)
        tokens = PROBE_TOKENS_REASONING if reasons(options.model) else PROBE_TOKENS
        short = options.model_copy(update={"max_tokens": tokens, "stop": None})
        async for _ in self.reply(LlmRequest("", [Message("user", "ping")], short)):
            pass

    async def aclose(self) -> None:
        await self._http.aclose()

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        """The answer as it is streamed. Closing the iterator closes its connection, which stops the generation."""
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url, body = f"{self._base_url}/chat/completions", body_of(request, official=is_official(self._base_url))
        calls, usage = OpenCalls(self.name), _Usage()
        reason, said, called = "", False, False
        async with (
            self._http.request("POST", url, headers=headers, json=body) as answer,
            aclosing(server_events(self.name, answer)) as events,
        ):
            async for data in events:
                if data.startswith(b"[DONE]"):
                    reason = reason or "stop"
                    break
                chunk = decoded(data)
                usage = chunk.usage or usage
                for choice in chunk.choices or ():
                    if choice.index:
                        continue  # one answer was asked for
                    if (delta := choice.delta) is not None:
                        if text := delta.content or delta.refusal:
                            said = True
                            yield TextDelta(text)
                        for event in assembled(calls, delta.tool_calls or ()):
                            called = called or isinstance(event, ToolCall)
                            yield event
                    reason = choice.finish_reason or reason
            await read_out(answer)
        if not reason:
            raise ProviderGarbage(f"{self.name}: an answer without an end")
        if reason == "error":
            raise ProviderUnavailable(f"{self.name}: it broke off")
        for call in calls.rest(cut=reason == "length"):
            called = True
            yield call
        if reason == "content_filter" and not (said or called):
            raise ProviderRejected(f"{self.name}: content_filter")
        yield ReplyDone(
            "length" if reason == "length" else "tools" if called else "stop",
            input_tokens=counted(usage.prompt_tokens),
            output_tokens=counted(usage.completion_tokens),
        )


# -- what is asked ----------------------------------------------------------------------------------------------------


def is_official(base_url: str) -> bool:
    """Whether this is OpenAI itself, which has taken on fields that servers like it may not know."""
    host = urlsplit(base_url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def reasons(model: str) -> bool:
    """Whether a model is of a family that thinks before it answers."""
    return REASONING.match(model.rpartition("/")[2]) is not None


def body_of(request: LlmRequest, *, official: bool) -> dict[str, Any]:
    """The request. To other servers than OpenAI's it says no more than all of them understand."""
    options = request.options
    assert isinstance(options, OpenAiLlmOptions)
    body: dict[str, Any] = {
        "model": options.model,
        "messages": messages_of(request),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if official:
        body["stream_options"]["include_obfuscation"] = False
    if request.tools:
        body["tools"] = [tool_of(tool) for tool in request.tools]
    chosen: dict[str, Any] = {
        "max_completion_tokens" if official else "max_tokens": options.max_tokens,
        "seed": options.seed,
        "stop": options.stop,
        "reasoning_effort": options.reasoning_effort,
    }
    if not reasons(options.model) or options.reasoning_effort == "none":
        chosen |= {"temperature": options.temperature, "top_p": options.top_p}
    return body | {name: value for name, value in chosen.items() if value is not None}


def messages_of(request: LlmRequest) -> list[dict[str, Any]]:
    """The conversation. What was said already is followed by the wish to go on."""
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    for message in request.messages:
        if message.role == "tool":
            messages.append({"role": "tool", "tool_call_id": id_for_all(message.call_id), "content": message.text})
            continue
        said: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.calls:
            said["tool_calls"] = [call_of(call) for call in message.calls]
        messages.append(said)
    if request.said.strip():
        messages += [{"role": "assistant", "content": request.said}, {"role": "user", "content": GO_ON}]
    return messages


def call_of(call: ToolCall) -> dict[str, Any]:
    """A call that was made, with arguments that the server can read again."""
    arguments = call.arguments if as_object(call.arguments) is not None else "{}"
    return {"id": id_for_all(call.id), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def tool_of(tool: Tool) -> dict[str, Any]:
    """A function that may be called."""
    function = {"name": tool.name, "description": tool.description, "parameters": schema(tool.parameters)}
    return {"type": "function", "function": function}


# -- what is answered -------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> _Chunk:
    """An event of the stream. Raises ConnectorError when it is none, or tells of a failure."""
    try:
        chunk = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise ProviderGarbage("openai: not a chunk of an answer") from None
    if (failure := bytes(chunk.error)) != b"null":
        raise failure_inside("openai", failure, STATUS)
    return chunk


def assembled(calls: OpenCalls, pieces: Sequence[_Call]) -> list[ToolCall | Thinking]:
    """Take in pieces of calls. Returns the calls that are complete since another one begins, as a new id tells, and
    signs of life."""
    done: list[ToolCall | Thinking] = []
    for piece in pieces:
        key, function = piece.index or 0, piece.function or _Function()
        known = calls.id_of(key)
        if (piece.id and piece.id != known) or (known is None and function.name):
            done += calls.complete()
            calls.begin(key, piece.id or "", function.name or "")
        if function.arguments:
            calls.write(key, function.arguments)
            done += thinking(function.arguments)
    return done
