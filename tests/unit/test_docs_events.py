"""docs/events.md says what is so: no event, field, message, setting or limit more, none less; its example works."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshag import clock
from meshag.api import elected, events, feed, webhooks
from meshag.bus import streams
from meshag.connectors import daily_webhooks
from meshag.sessions.events import EVENT_TYPES
from meshag.settings import Settings

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "events.md").read_text("utf-8")
ROUTE = ROOT / "src" / "meshag" / "api" / "events.py"
CODE = re.compile(r"`(\w+)`")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def section(title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(2)


def rows(text: str) -> dict[str, set[str]]:
    """First cells of a table's rows that are code, with the code words of the cell after it."""
    found = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]*)\|", text, re.MULTILINE)
    return {name: set(CODE.findall(second)) for first, second in found for name in CODE.findall(first)}


def told() -> dict[str, set[str]]:
    """Every event that the code tells, with its data: calls of `note` and `tell`, and what `told` beside them adds."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        tree = ast.parse(text if ".note(" in text or ".tell(" in text else "")
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            dicts = [node for node in ast.walk(function) if isinstance(node, ast.Dict)]
            for node in ast.walk(function):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                kind = node.args[0]
                if node.func.attr not in ("note", "tell") or not isinstance(kind, ast.Constant):
                    continue
                fields = {word.arg for word in node.keywords if word.arg not in (None, "once")}
                if any(word.arg is None and getattr(word.value, "id", "") == "told" for word in node.keywords):
                    keys = [key for one in dicts for key in one.keys]
                    fields |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
                found.setdefault(str(kind.value), set()).update(map(str, fields))
    return found


def said() -> dict[str, set[str]]:
    """Every message that the route sends, with its fields."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(ROUTE.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            keys = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            kind = keys.get("type")
            if isinstance(kind, ast.Constant):
                spread = {"types", "sessions"} if None in node.keys else set()
                found[str(kind.value)] = {str(key) for key in keys} - {"type"} | spread
    return found


def test_every_event_has_the_data_of_the_page_and_there_are_no_others() -> None:
    page = rows(PAGE.partition("## What is kept")[0])
    assert page.keys() == set(EVENT_TYPES)
    ours = told()
    assert ours.keys() == page.keys() - (set(daily_webhooks.KINDS.values()) - ours.keys())
    assert {kind: page[kind] for kind in ours} == ours


def test_every_message_is_on_the_page_with_its_fields() -> None:
    assert rows(section("What you get")) == said()


def test_every_message_that_is_taken_is_on_the_page() -> None:
    taken = {
        str(node.comparators[0].value)
        for node in ast.walk(ast.parse(ROUTE.read_text("utf-8")))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "kind"
        and isinstance(node.comparators[0], ast.Constant)
    }
    assert rows(section("What you send")).keys() == taken == {"subscribe", "ping", "pong"}


def test_the_limits_are_the_code_s() -> None:
    assert f"kept in NATS for {streams.EVENT_AGE_S // 60} minutes" in PAGE
    assert f"Beyond {streams.EVENT_BYTES // 1024 // 1024} MB" in PAGE
    assert f"comma separated, up to {events.MOST_SESSIONS} |" in PAGE
    assert f"| every {events.PING_S:.0f} s." in PAGE
    assert (
        f"shorter than {events.MESSAGE_BYTES // 1024} KB and are read no faster than {1 / events.PACE_S:.0f} a" in PAGE
    )
    assert f"more than {feed.WAITING:,} events waited" in PAGE
    assert f"took nothing for {events.STUCK_S:.0f} s" in PAGE
    assert f"takes {events.MOST_WATCHERS} connections" in PAGE


def test_the_webhooks_limits_are_the_code_s() -> None:
    takeover_s = webhooks.ACK_WAIT_S + elected.SETTLE_S
    assert takeover_s < 15, "and the time in which a death is noticed"
    assert f"Answer within {webhooks.ANSWER_S:.0f} s" in PAGE
    assert f"| {', '.join(map(str, sorted(webhooks.REFUSED)))} | this event is passed over" in PAGE
    assert f"| {webhooks.GONE} | nothing more" in PAGE
    assert (
        f"after {webhooks.FIRST_WAIT_S:.0f} s, then twice as long every time up to {webhooks.MOST_WAIT_S:.0f} s" in PAGE
    )
    assert webhooks.RETRY_AFTER_MOST_S == 3600
    assert f"no more than {webhooks.MOST:,} wait" in PAGE
    assert f"Up to {webhooks.AT_ONCE} requests" in PAGE


def test_the_settings_are_there() -> None:
    named = set(re.findall(r"^\| `MESHAG_(WEBHOOK_\w+)` \|", PAGE, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields if name.startswith("webhook_")}


def test_the_metrics_are_there() -> None:
    for metric, name in (
        (webhooks.metrics.WEBHOOKS, "meshag_webhooks"),
        (webhooks.metrics.WEBHOOK_FAILURES, "meshag_webhook_failures"),
    ):
        assert metric._name == name
        assert f"`{name}_total`" in PAGE


def example() -> Callable[[str, dict[str, str], bytes], None]:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    there: dict[str, Any] = {}
    exec(block, there)
    verify: Callable[[str, dict[str, str], bytes], None] = there["verify"]
    return verify


@pytest.mark.parametrize("secret", [SECRET, "any text"])
def test_the_example_takes_what_is_ours_and_nothing_else(secret: str) -> None:
    verify, now_s = example(), clock.wall_ns() // 1_000_000_000
    headers = webhooks.signed(webhooks.key_of(secret), "evt_1", now_s, b'{"id": 1}')
    verify(secret, headers, b'{"id": 1}')
    old = webhooks.signed(webhooks.key_of(secret), "evt_1", now_s - 600, b'{"id": 1}')
    wrong: list[tuple[str, dict[str, str], bytes]] = [
        (secret, headers, b'{"id": 2}'),
        ("another", headers, b'{"id": 1}'),
        (secret, headers | {"webhook-id": "evt_2"}, b'{"id": 1}'),
        (secret, headers | {"webhook-timestamp": str(now_s + 1)}, b'{"id": 1}'),
        (secret, old, b'{"id": 1}'),
    ]
    for case in wrong:
        with pytest.raises(ValueError, match=r"signed|old"):
            verify(*case)
