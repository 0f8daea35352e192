"""Anthropic's messages: `async with AnthropicStandIn() as vendor`, its base address is `vendor.url`."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from vendors.faults import main
from vendors.writing import ModelStandIn, Refused, Writing, pieces

PARAMETERS = """
cache_control container context_management diagnostics inference_geo max_tokens mcp_servers messages metadata
model output_config service_tier speed stop_sequences stream system temperature thinking tool_choice tools top_k
top_p
"""
MODELS = ("claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5")
VERSIONS = ("2023-06-01", "2026-10-21")
NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
REASONS = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use"}


class AnthropicStandIn(ModelStandIn):
    """`key`: the only one it takes."""

    path = "/v1/messages"

    # -- what it takes ------------------------------------------------------------------------------------------------

    def check(self, request: web.Request, body: Any) -> None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key not in (request.headers.get("x-api-key"), bearer):
            raise Refused(401, "invalid x-api-key")
        version = request.headers.get("anthropic-version")
        if version is None:
            raise Refused(400, "anthropic-version: header is required")
        if version not in VERSIONS:
            raise Refused(400, f'anthropic-version: "{version}" is not a valid version')
        if not isinstance(body, dict):
            raise Refused(400, "The request body is not valid JSON")
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                raise Refused(400, f"{name}: Field required")
        if unknown := [name for name in body if name not in PARAMETERS.split()]:
            raise Refused(400, f"{unknown[0]}: Extra inputs are not permitted")
        if body["model"] not in MODELS:
            raise Refused(404, f"model: {body['model']}")
        if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
            raise Refused(400, "max_tokens: Input should be greater than or equal to 1")
        sampling = [name for name in ("temperature", "top_p", "top_k") if name in body]
        if sampling and version != VERSIONS[0]:
            raise Refused(400, f"{sampling[0]}: Extra inputs are not permitted")
        if "temperature" in body and "top_p" in body:
            raise Refused(400, "`temperature` and `top_p` cannot both be specified for this model.")
        if not 0 <= body.get("temperature", 1) <= 1:
            raise Refused(400, "temperature: range: 0..1")
        if body.get("system") == "":
            raise Refused(400, "system: text content blocks must be non-empty")
        for number, tool in enumerate(body.get("tools", ())):
            if not NAME.fullmatch(tool.get("name", "")):
                raise Refused(400, f"tools.{number}.custom.name: String should match pattern '{NAME.pattern}'")
            if tool.get("input_schema", {}).get("type") != "object":
                raise Refused(400, f"tools.{number}.custom.input_schema.type: Field required")
        self._check_messages(body["messages"], bool(body.get("tools")))

    def _check_messages(self, messages: Any, tools: bool) -> None:
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "messages: at least one message is required")
        if messages[0].get("role") != "user":
            raise Refused(400, 'messages: first message must use the "user" role')
        called: set[str] = set()
        for number, message in enumerate(messages):
            if message.get("role") not in ("user", "assistant"):
                raise Refused(400, f"messages.{number}.role: Input should be 'user' or 'assistant'")
            blocks = _blocks(message.get("content"))
            if not blocks and number < len(messages) - 1:
                raise Refused(400, f"messages.{number}: all messages must have non-empty content")
            answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
            if missing := called - answered:
                raise Refused(400, f"messages.{number}: `tool_use` ids without `tool_result` blocks: {missing.pop()}")
            if answered - called:
                raise Refused(400, f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks")
            if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
                raise Refused(400, "messages: text content blocks must contain non-whitespace text")
            uses = [block for block in blocks if block["type"] == "tool_use"]
            if (uses or answered) and not tools:
                raise Refused(400, "Requests which include `tool_use` or `tool_result` blocks must define tools")
            for use in uses:
                if (
                    message["role"] != "assistant"
                    or not isinstance(use["input"], dict)
                    or not NAME.fullmatch(use["id"])
                ):
                    raise Refused(400, f"messages.{number}.content: invalid `tool_use` block")
            called = {use["id"] for use in uses}
        if called:
            raise Refused(400, "messages: `tool_use` ids were found without `tool_result` blocks immediately after")
        last = [block.get("text", "") for block in _blocks(messages[-1]["content"])[-1:]]
        if messages[-1]["role"] == "assistant" and last != [text.rstrip() for text in last]:
            raise Refused(400, "messages: final assistant content cannot end with trailing whitespace")

    def words_of(self, body: dict[str, Any]) -> tuple[str, int, bool]:
        blocks = [block for message in body["messages"] for block in _blocks(message["content"])]
        words = str(body.get("system", "")) + "".join(block.get("text", "") for block in blocks)
        answered = any(block["type"] == "tool_result" for block in blocks)
        may_call = bool(body.get("tools")) and not answered and body.get("tool_choice", {}).get("type") != "none"
        return words, body["max_tokens"], may_call

    # -- what it says -------------------------------------------------------------------------------------------------

    def error(self, status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
        kind = code or TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_standin"}

    def failure(self, code: str, message: str) -> bytes:
        return _event(self.error(529, code, message))

    def opening(self, writing: Writing) -> list[bytes]:
        usage = {"input_tokens": writing.input_tokens, "output_tokens": 1}
        message = {**_envelope(writing), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        events = [_event({"type": "message_start", "message": message})]
        if not writing.calls:
            events.append(_start(0, {"type": "text", "text": ""}))
        return [*events, _event({"type": "ping"})]

    def items(self, writing: Writing) -> Iterator[bytes]:
        for token in writing.tokens:
            yield _delta(0, {"type": "text_delta", "text": token})
        for index, call in enumerate(writing.calls):
            yield _start(index, {"type": "tool_use", "id": call["id"], "name": call["name"], "input": {}})
            for piece in ["", *pieces(call["arguments"])]:
                yield _delta(index, {"type": "input_json_delta", "partial_json": piece})
            yield _event({"type": "content_block_stop", "index": index})

    def closing(self, writing: Writing) -> list[bytes]:
        delta = {"stop_reason": REASONS.get(writing.reason, writing.reason), "stop_sequence": None}
        usage = {"output_tokens": writing.output_tokens}
        stop = [] if writing.calls else [_event({"type": "content_block_stop", "index": 0})]
        return [
            *stop,
            _event({"type": "message_delta", "delta": delta, "usage": usage}),
            _event({"type": "message_stop"}),
        ]

    def whole(self, writing: Writing) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {
                "type": "tool_use",
                "id": call["id"],
                "name": call["name"],
                "input": msgspec.json.decode(call["arguments"]),
            }
            for call in writing.calls
        ] or [{"type": "text", "text": "".join(writing.tokens)}]
        reason = REASONS.get(writing.reason, writing.reason)
        usage = {"input_tokens": writing.input_tokens, "output_tokens": writing.output_tokens}
        return {**_envelope(writing), "content": content, "stop_reason": reason, "stop_sequence": None, "usage": usage}

    def odd(self, kind: str) -> bytes:
        return {
            "json": b'event: hello\ndata: {"type":"hello","words":["there"]}\n\n',
            "nan": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":NaN}}\n\n',
            "types": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":5}}\n\n',
        }[kind]


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _envelope(writing: Writing) -> dict[str, Any]:
    return {"id": "msg_standin", "type": "message", "role": "assistant", "model": writing.model}


def _start(index: int, block: dict[str, Any]) -> bytes:
    return _event({"type": "content_block_start", "index": index, "content_block": block})


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event({"type": "content_block_delta", "index": index, "delta": delta})


def _event(value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), msgspec.json.encode(value))


if __name__ == "__main__":
    main(AnthropicStandIn)
