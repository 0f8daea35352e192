"""Who may use which route, as the route table says it; keys, rates and origins before anything is connected."""

import json
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from meshag import ids
from meshag.api import access
from meshag.api.access import rule_of
from meshag.api.limits import RateLimit
from meshag.api.problems import problem, problem_of
from meshag.api.serve import routes
from meshag.api.service import service
from meshag.commands.common import api_key
from meshag.errors import AuthError, ConfigError, LimitError
from meshag.observe.logs import _Libraries, without_secrets
from meshag.sessions.keys import SCOPES, ApiKey, Scope
from meshag.settings import Settings
from meshag.subjects import STAGES

pytestmark = pytest.mark.unit

OPEN = {"/health", "/ready", "/metrics", "/", "/static/{name}", "/openapi.json", "/docs", "/docs/{name}"}
"""What answers without a key, whatever the settings. Add to it only what tells nothing of anybody's session."""

SIGNED = {"/daily/webhook", "/daily/webhooks", "/webhooks/daily"}
"""Like these, which a vendor asks for; the handler checks its signature."""


def table(stage: str) -> list[tuple[str, str, Any]]:
    """Method, path and handler of everything that a service answers."""
    worker = cast("Any", SimpleNamespace(settings=Settings()))
    app = service(worker, routes() if stage == "transport" else ())
    return [(r.method, r.resource.canonical, r.handler) for r in app.router.routes() if r.resource is not None]


@pytest.mark.parametrize("stage", STAGES)
def test_every_route_says_who_may_use_it(stage: str) -> None:
    found = table(stage)
    assert len(found) >= 6
    assert [(method, path) for method, path, handler in found if rule_of(handler) is None] == []


def test_only_what_is_listed_answers_everybody() -> None:
    everybody = {path for _, path, handler in table("transport") if rule_of(handler) == "everybody"}
    assert {"/health", "/ready", "/metrics", "/"} <= everybody <= OPEN | SIGNED


def test_what_changes_something_needs_more_than_reading() -> None:
    for method, path, handler in table("transport"):
        if method not in ("GET", "HEAD"):
            assert rule_of(handler) in ("write", "admin") or path in SIGNED, (method, path)


def test_an_id_in_a_path_is_a_session_s() -> None:
    """The guard takes it for one: whose session it is decides who may."""
    for _, path, handler in table("transport"):
        if "{id}" in path or "/sessions/{" in path:
            assert path.startswith("/sessions/{id}"), path
            assert rule_of(handler) in ("read", "write", "admin", "caller"), path


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_its_id_and_its_secret() -> None:
    key, secret = ids.new_api_key()
    text = ids.api_key(key, secret)
    assert len(text) == len("mesh_") + 13 + 1 + 52
    assert ids.parse_api_key(text) == (key, secret)
    assert ids.parse_key_id(key) == key
    assert len({ids.new_api_key()[1] for _ in range(100)}) == 100


@given(st.text(max_size=80))
def test_what_is_not_exactly_a_key_is_none(text: str) -> None:
    good = ids.api_key(*ids.new_api_key())
    for wrong in (text, good + text if text else good[:-1], text + good if text else good[1:], good.upper()):
        assert ids.parse_api_key(wrong) is None


def key(scope: Scope, **more: Any) -> ApiKey:
    fields: dict[str, Any] = {"session_quota": 0, "rate_per_s": 0, "created_at_s": 0.0, "digest": "", "name": ""}
    return ApiKey(id=ids.new_api_key()[0], scope=scope, **{**fields, **more})


def test_each_scope_may_do_what_the_one_before_it_may() -> None:
    assert [[key(mine).may(needed) for needed in SCOPES] for mine in SCOPES] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_whose_sessions_a_request_may_see() -> None:
    request = make_mocked_request("GET", "/")
    assert (access.key_of(request), access.limited_to(request), access.quota_of(request)) == ("", "", 0)
    writer, admin = key("write", session_quota=7), key("admin")
    request[access.API_KEY] = writer
    assert (access.key_of(request), access.limited_to(request), access.quota_of(request)) == (writer.id, writer.id, 7)
    request[access.API_KEY] = admin
    assert (access.key_of(request), access.limited_to(request)) == (admin.id, "")


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, None),
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"Authorization": "bearer   abc "}, "abc"),
        ({"X-API-Key": "abc"}, "abc"),
        ({"Authorization": "Bearer abc", "X-API-Key": "abc"}, "abc"),
        ({"Authorization": "Bearer abc", "X-API-Key": "def"}, ""),
        ({"Authorization": "Basic abc"}, ""),
        ({"Authorization": "abc"}, ""),
        ({"Authorization": ""}, ""),
        ({"Sec-WebSocket-Protocol": "meshag, meshag.key.abc"}, None),
        ({"Sec-WebSocket-Protocol": "meshag, meshag.key.abc", "Upgrade": "WebSocket"}, "abc"),
        ({"Sec-WebSocket-Protocol": "meshag", "Upgrade": "websocket"}, None),
        ({"Cookie": "key=abc"}, None),
    ],
)
def test_where_a_key_is_looked_for(headers: dict[str, str], sent: str | None) -> None:
    assert access._sent(make_mocked_request("GET", "/?key=abc&api_key=abc", headers=headers)) == sent


@pytest.mark.parametrize(
    ("remote", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        (None, ""),
    ],
)
def test_one_machine_is_one_address(remote: str | None, network: str) -> None:
    assert access._network(remote) == network


def test_the_commands_key_is_checked_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHAG_API_KEY", " ")
    assert api_key() == ""
    good = ids.api_key(*ids.new_api_key())
    monkeypatch.setenv("MESHAG_API_KEY", f"{good}\n")
    assert api_key() == good
    monkeypatch.setenv("MESHAG_API_KEY", "hush\r\nX: y")
    with pytest.raises(ConfigError) as caught:
        api_key()
    assert "hush" not in str(caught.value) + caught.value.fix


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "required"),
    [
        ({}, True),
        ({"one_machine": True}, False),
        ({"one_machine": True, "host": "localhost"}, False),
        ({"one_machine": True, "host": "::1"}, False),
        ({"one_machine": True, "host": "0.0.0.0"}, True),
        ({"one_machine": True, "host": "127.0.0.1.evil.example"}, True),
        ({"one_machine": True, "access": "keys"}, True),
    ],
)
def test_when_keys_are_needed(given_: dict[str, Any], required: bool) -> None:
    assert Settings(**given_).keys_required is required


def test_origins_are_exact() -> None:
    listed = " https://app.example.com,http://localhost:3000 ,,http://[::1]:8080"
    assert Settings(cors_origins=listed).origins == {
        "https://app.example.com",
        "http://localhost:3000",
        "http://[::1]:8080",
    }
    assert Settings().origins == frozenset()


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example.com",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://user@app.example.com",
        "ftp://app.example.com",
        "https://",
        "https://a https://b",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="as browsers write it"):
        Settings(cors_origins=f"http://localhost:3000,{origin}")


# -- rates ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(s=1000.0)
    monkeypatch.setattr("meshag.clock.monotonic_s", lambda: made.s)
    return made


def test_so_much_at_once_then_so_much_a_second(now: SimpleNamespace) -> None:
    limit = RateLimit()
    waits = [limit.wait_s("a", 2, 3) for _ in range(5)]
    assert waits == [0, 0, 0, pytest.approx(0.5), pytest.approx(0.5)]  # what is refused costs nothing
    assert limit.wait_s("b", 2, 3) == 0
    now.s += 0.5
    assert [limit.wait_s("a", 2, 3) for _ in range(2)] == [0, pytest.approx(0.5)]
    now.s += 100
    assert [limit.wait_s("a", 2, 3) > 0 for _ in range(4)] == [False, False, False, True]


def test_looking_spends_nothing(now: SimpleNamespace) -> None:
    limit = RateLimit()
    assert [limit.wait_s("a", 1, 1, spend=False) for _ in range(3)] == [0, 0, 0]
    assert limit.wait_s("a", 1, 1) == 0
    assert limit.wait_s("a", 1, 1, spend=False) == 1


def test_the_table_of_names_is_bounded(now: SimpleNamespace) -> None:
    limit = RateLimit(most=10)
    for number in range(1000):
        limit.wait_s(str(number), 1, 1)
    assert len(limit._spent_s) == 10
    assert limit.wait_s("999", 1, 1) > 0


# -- answers and logs -------------------------------------------------------------------------------------------------


def test_the_answers_say_what_to_do_next() -> None:
    late = problem_of(LimitError("x", retry_after_s=7, code="quota_exceeded"))
    assert (late.status, late.headers["Retry-After"]) == (429, "7")
    assert json.loads(str(late.text))["code"] == "quota_exceeded"
    assert problem_of(AuthError("x")).headers["WWW-Authenticate"].startswith("Bearer ")


def test_a_problem_names_its_request() -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        assert json.loads(str(problem(400, "x", "y").text))["request_id"] == "r-1"
    assert "request_id" not in json.loads(str(problem(400, "x", "y").text))


def test_a_key_in_a_log_line_is_only_its_id() -> None:
    number, secret = ids.new_api_key()
    text = ids.api_key(number, secret)
    assert without_secrets(f"a {text}, b {text}") == f"a mesh_{number}_…, b mesh_{number}_…"
    record = logging.LogRecord("aiohttp.websocket", logging.WARNING, "", 0, "protocols %r", (f"x.{text}",), None)
    said = _Libraries("%(message)s").format(record)
    assert secret not in said
    assert number in said


async def test_a_route_without_a_rule_answers_nobody() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise AssertionError

    for settings in (Settings(), Settings(one_machine=True)):
        check = access.guard(cast("Any", SimpleNamespace(settings=settings)))
        found = SimpleNamespace(handler=handler, http_exception=None)
        request = cast("Any", SimpleNamespace(match_info=found, path="/x"))
        answer = cast("web.Response", await check(request, handler))
        assert (answer.status, json.loads(str(answer.text))["code"]) == (500, "route_without_rule")
