"""docs/websocket.md and docs/http.md say what is so: no message, field, code, limit or route more, none less."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshag.api.serve import routes
from meshag.api.service import service
from meshag.audio import RATES_HZ
from meshag.connectors import messages
from meshag.connectors.transports import websocket
from meshag.settings import Settings

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "src" / "meshag" / name
    for name in ("connectors/transports/websocket.py", "stages/transport.py", "api/stream.py")
]
PAGE = (ROOT / "docs" / "websocket.md").read_text("utf-8")
HTTP = (ROOT / "docs" / "http.md").read_text("utf-8")


def section(title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(2)


def rows(title: str) -> dict[str, set[str]]:
    """First cells of a table's rows that are code, with the code words of the cell after it."""
    found = re.findall(r"^\| ([^|]*) \| ([^|]*) \|", section(title), re.MULTILINE)
    return {
        name: set(re.findall(r"`(\w+)`", second))
        for first, second in found
        for name in re.findall(r"`([\w ]+)`", first)
    }


def sent() -> dict[str, set[str]]:
    """Every event that the code sends, with its fields: literal dicts with a "type", and calls of `_event`."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                keys = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
                kind = keys.get("type")
                if isinstance(kind, ast.Constant):
                    found.setdefault(str(kind.value), set()).update(str(key) for key in keys)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_event":
                kind = node.args[1]
                assert isinstance(kind, ast.Constant), "an event's type is written out, so that this test can see it"
                fields = {str(word.arg) for word in node.keywords}
                found.setdefault(str(kind.value), set()).update(fields | {"type", "turn", "t_ms"})
    return found


def taken() -> set[str]:
    """Every message type that the code compares with."""
    tree = ast.parse(SOURCES[0].read_text("utf-8"))
    return {
        str(node.comparators[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "kind"
        and isinstance(node.comparators[0], ast.Constant)
    }


def test_every_event_is_on_the_page_and_nothing_else() -> None:
    events = sent()
    assert len(events) > 12
    assert rows("What you get").keys() == events.keys()


def test_every_event_has_the_fields_of_the_page() -> None:
    for kind, fields in sent().items():
        assert rows("What you get")[kind] == fields - {"type", "t_ms"}, kind


def test_every_message_that_is_taken_is_on_the_page_and_nothing_else() -> None:
    assert taken() == {"text", "interrupt", "ping", "bye"}
    assert rows("What you send").keys() == taken()


def test_the_example_uses_messages_that_exist() -> None:
    example = section("A conversation")
    assert set(re.findall(r'← {"type": "(\w+)"', example)) <= sent().keys()
    assert set(re.findall(r'→ {"type": "(\w+)"', example)) <= taken()
    for kind, fields in re.findall(r'← {"type": "(\w+)"(.*)}$', example, re.MULTILINE):
        if ", …" not in fields:
            assert set(re.findall(r'"(\w+)":', fields)) == sent()[kind] - {"type"}, kind


def test_every_error_code_is_explained() -> None:
    refusing = SOURCES[0].read_text("utf-8") + Path(messages.__file__).read_text("utf-8")
    codes = set(re.findall(r'refuse\(\s*\w+,\s*"(\w+)"', refusing))
    codes |= set(re.findall(r'code="(\w+)"', SOURCES[1].read_text("utf-8")))
    codes |= set(re.findall(r'code = "(all_\w+)"', (ROOT / "src/meshag/connectors/failover.py").read_text("utf-8")))
    assert {"audio_odd_length", "text_not_taken", "all_providers_failed"} <= codes
    assert codes <= rows("Errors").keys()


def test_the_limits_are_the_code_s() -> None:
    limits = section("Limits")
    assert f"shorter than {websocket.MESSAGE_BYTES:,} bytes" in limits
    assert f"| {messages.TEXT_CHARS:,} characters |" in limits
    assert f"| {websocket.BURST_S:.0f} s ahead |" in limits
    burst = websocket.MESSAGES_PER_S * websocket.MESSAGE_BURST_S
    assert f"| {burst:.0f} at once, then {websocket.MESSAGES_PER_S} a second |" in limits
    assert f"audio that you do not read | {websocket.AUDIO_BOUND_MS // 1000} s |" in limits
    assert f"events that you do not read | {websocket.EVENT_BOUND} |" in limits
    assert f"you read nothing at all | {websocket.STUCK_S:.0f} s |" in limits
    assert f"you send nothing at all | {websocket.HEARTBEAT_S:.0f} s |" in limits
    assert f"within {websocket.HEARTBEAT_S / 2:.0f} s" in limits
    assert f"agreeing to a close | {websocket.CLOSE_S:.0f} s |" in limits
    assert f"{', '.join(map(str, RATES_HZ[:-1]))} or {RATES_HZ[-1]}" in PAGE


def test_every_route_is_on_its_page_and_nothing_else() -> None:
    worker = cast("Any", SimpleNamespace(settings=Settings()))
    app = service(worker, routes())
    there = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert len(there) == 38
    assert set(re.findall(r"`((?:GET|POST|PATCH|DELETE|PUT) [^`]+)`", HTTP)) == there
    for title, text in re.findall(r"^## `(\w+ [^`]+)`\n(.*?)(?=^## |\Z)", HTTP, re.MULTILINE | re.DOTALL):
        assert "```\ncurl " in text or "websocket.md" in text, title
