"""OpenAI's chat completions: `async with OpenAiLlmStandIn() as vendor`, its base address is `vendor.url + "/v1"`."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from vendors.faults import main
from vendors.writing import ModelStandIn, Refused, Writing, pieces

PARAMETERS = """
audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages
metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity
web_search_options
"""
MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "o3-mini", "o4-mini", "gpt-5-mini", "gpt-5.4-mini")
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("tokens", "rate_limit_exceeded"),
}


class OpenAiLlmStandIn(ModelStandIn):
    """`key`: the only one it takes; empty: a server of one's own, which asks for none."""

    path = "/v1/chat/completions"
    done = (b"data: [DONE]\n\n",)

    def routes(self) -> list[web.RouteDef]:
        return [*super().routes(), web.get("/v1/models", self._models)]

    async def _models(self, request: web.Request) -> web.Response:
        try:
            self._authorised(request)
        except Refused as refused:
            return web.json_response(self.error(refused.status, refused.code, refused.message), status=refused.status)
        listed = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "openai"} for name in MODELS]
        return web.json_response({"object": "list", "data": listed})

    # -- what it takes ------------------------------------------------------------------------------------------------

    def _authorised(self, request: web.Request) -> None:
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and shown != self.key:
            raise Refused(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")

    def check(self, request: web.Request, body: Any) -> None:
        self._authorised(request)
        if not isinstance(body, dict):
            raise Refused(400, "We could not parse the JSON body of your request.")
        if unknown := [name for name in body if name not in PARAMETERS.split()]:
            raise Refused(400, f"Unrecognized request argument supplied: {unknown[0]}")
        if not isinstance(body.get("model"), str):
            raise Refused(400, "you must provide a model parameter")
        if body["model"] not in MODELS:
            raise Refused(404, f"The model `{body['model']}` does not exist or you do not have access to it.")
        self._check_numbers(body)
        if "stream_options" in body:
            if not body.get("stream"):
                raise Refused(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
            if unknown := set(body["stream_options"]) - {"include_usage", "include_obfuscation"}:
                raise Refused(400, f"Unknown parameter: 'stream_options.{unknown.pop()}'.", code="unknown_parameter")
        self._check_messages(body.get("messages"))
        for number, tool in enumerate(body.get("tools", ())):
            function = tool.get("function", {})
            param = f"tools[{number}].function"
            if tool.get("type") != "function" or not NAME.fullmatch(function.get("name", "")):
                raise Refused(400, f"Invalid '{param}.name'", code="invalid_value", param=f"{param}.name")
            if function.get("parameters", {"type": "object"}).get("type") != "object":
                raise Refused(400, "Invalid schema for function", code="invalid_function_parameters", param=param)

    def _check_numbers(self, body: dict[str, Any]) -> None:
        for name, least, most in (("temperature", 0, 2), ("top_p", 0, 1), ("presence_penalty", -2, 2)):
            value = body.get(name)
            if value is not None and not (isinstance(value, (int, float)) and least <= value <= most):
                raise Refused(400, f"Invalid '{name}'", code="decimal_out_of_range", param=name)
        for name in ("max_tokens", "max_completion_tokens"):
            value = body.get(name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise Refused(400, f"Invalid '{name}': integer below minimum value.", param=name)
        if re.match(r"o\d|gpt-5", body["model"]) and body.get("reasoning_effort") != "none":
            if body.get("max_tokens") is not None and self.key:
                raise Refused(
                    400,
                    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                    "'max_completion_tokens' instead.",
                    code="unsupported_parameter",
                    param="max_tokens",
                )
            for name in ("temperature", "top_p"):
                if body.get(name) not in (None, 1):
                    raise Refused(400, f"Unsupported value: '{name}'", code="unsupported_value", param=name)

    def _check_messages(self, messages: Any) -> None:
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "Invalid 'messages': empty array.", code="empty_array", param="messages")
        waiting: set[str] = set()
        for number, message in enumerate(messages):
            role, param = message.get("role"), f"messages.[{number}]"
            if role not in ("system", "developer", "user", "assistant", "tool"):
                raise Refused(400, f"Invalid value: '{role}'.", code="invalid_value", param=f"{param}.role")
            if role == "tool":
                if message.get("tool_call_id") not in waiting:
                    raise Refused(
                        400, "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
                    )
                waiting.remove(message["tool_call_id"])
            elif waiting:
                raise Refused(400, "An assistant message with 'tool_calls' must be followed by tool messages.")
            calls = message.get("tool_calls") or []
            if not isinstance(message.get("content"), (str, list)) and not calls:
                raise Refused(400, "Invalid 'content': expected a string, got null.", param=f"{param}.content")
            for call in calls:
                if len(call["id"]) > 40:
                    raise Refused(400, "Invalid 'id': string too long.", code="string_above_max_length", param=param)
                if not isinstance(call["function"]["arguments"], str):
                    raise Refused(400, "Invalid type for 'arguments'", code="invalid_type", param=param)
                msgspec.json.decode(call["function"]["arguments"], type=dict)  # as servers like it do
                waiting.add(call["id"])
        if waiting:
            raise Refused(400, "An assistant message with 'tool_calls' must be followed by tool messages.")

    def words_of(self, body: dict[str, Any]) -> tuple[str, int, bool]:
        words = "".join(str(message.get("content") or "") for message in body["messages"])
        most = body.get("max_completion_tokens") or body.get("max_tokens") or 1_000_000
        answered = any(message["role"] == "tool" for message in body["messages"])
        return words, most, bool(body.get("tools")) and not answered and body.get("tool_choice") != "none"

    # -- what it says -------------------------------------------------------------------------------------------------

    def error(self, status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
        kind, usual = TYPES.get(status, ("server_error", None))
        if code == "insufficient_quota":
            kind = code
        return {"error": {"message": message, "type": kind, "param": param, "code": code or usual}}

    def failure(self, code: str, message: str) -> bytes:
        return _event({"error": {"message": message, "type": "server_error", "param": None, "code": code or None}})

    def opening(self, writing: Writing) -> list[bytes]:
        content = None if writing.calls else ""
        return [_chunk(writing, {"role": "assistant", "content": content, "refusal": None})]

    def items(self, writing: Writing) -> Iterator[bytes]:
        for token in writing.tokens:
            yield _chunk(writing, {"content": token})
        for index, call in enumerate(writing.calls):
            function = {"name": call["name"], "arguments": ""}
            head = {"index": index, "id": call["id"], "type": "function", "function": function}
            yield _chunk(writing, {"tool_calls": [head]})
            for piece in pieces(call["arguments"]):
                yield _chunk(writing, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})

    def closing(self, writing: Writing) -> list[bytes]:
        events = [_chunk(writing, {}, REASONS.get(writing.reason, writing.reason))]
        if _wants(writing, "include_usage"):
            usage = {**_envelope(writing), "choices": [], "usage": _usage(writing)}
            events.append(_event(usage))
        return events

    def whole(self, writing: Writing) -> dict[str, Any]:
        calls = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in writing.calls
        ]
        message = {"role": "assistant", "content": None if calls else "".join(writing.tokens), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        reason = REASONS.get(writing.reason, writing.reason)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**_envelope(writing), "object": "chat.completion", "choices": [choice], "usage": _usage(writing)}

    def odd(self, kind: str) -> bytes:
        return {
            "json": b'data: {"output":[{"words":["hello"]}],"done":true}\n\n',
            "nan": b'data: {"choices":[{"index":0,"delta":{"content":NaN},"finish_reason":null}]}\n\n',
            "types": b'data: {"choices":[{"index":"0","delta":{"content":["a"]},"finish_reason":7}]}\n\n',
        }[kind]


REASONS = {"calls": "tool_calls"}


def _wants(writing: Writing, option: str) -> bool:
    return bool((writing.body.get("stream_options") or {}).get(option, option == "include_obfuscation"))


def _envelope(writing: Writing) -> dict[str, Any]:
    return {
        "id": "chatcmpl-standin",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": writing.model,
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }


def _chunk(writing: Writing, delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    chunk: dict[str, Any] = {**_envelope(writing), "choices": [choice]}
    if _wants(writing, "include_usage"):
        chunk["usage"] = None
    if _wants(writing, "include_obfuscation"):
        chunk["obfuscation"] = "aLxx3f9Qw"
    return _event(chunk)


def _usage(writing: Writing) -> dict[str, Any]:
    return {
        "prompt_tokens": writing.input_tokens,
        "completion_tokens": writing.output_tokens,
        "total_tokens": writing.input_tokens + writing.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


if __name__ == "__main__":
    main(OpenAiLlmStandIn)
