"""Functions that a session's model may call: what is accepted, what is refused, and that checking takes no time."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from meshag.sessions import schemas
from meshag.sessions.config import ConfigProblems, SessionConfig, SessionRequest, parse_request, patched
from meshag.sessions.problems import Problem
from meshag.sessions.schemas import schema_problems, value_problems
from meshag.sessions.tools import STORED, ToolConfig, ToolHttp, ToolNats

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 1}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "http": {"url": "https://weather.example.com/now", "headers": {"Authorization": "Bearer ${MESHAG_TOOL_WEATHER}"}},
}
SILENT = {"name": "hang_up", "description": "Ends the call.", "nats": {"subject": "tools.calls.hang_up"}, "say": ""}


def request(*tools: Any, **config: Any) -> str:
    return json.dumps({"config": {"tools": tools, **config}})


def weather(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in {**WEATHER, **changed}.items() if value is not None}


def schema(**more: Any) -> dict[str, Any]:
    return {"type": "object", **more}


def refused(body: str) -> list[Problem]:
    with pytest.raises(ConfigProblems) as caught:
        parse_request(body)
    return caught.value.problems


# -- what is accepted -------------------------------------------------------------------------------------------------


def test_a_tool_and_its_defaults() -> None:
    config = parse_request(request(WEATHER, SILENT)).config
    first, second = config.tools
    assert first.http is not None
    assert (first.http.method, first.deadline_ms, first.say_after_ms) == ("POST", 5000, 800)
    assert first.say == "One moment, please."
    assert second.nats is not None
    assert (second.nats.subject, second.say, second.http) == ("tools.calls.hang_up", "", None)
    assert second.parameters == {"type": "object", "properties": {}}
    assert config.tools_per_turn == 4
    assert SessionConfig().tools == []


def test_tools_survive_their_own_json_and_patches() -> None:
    nullable = schema(properties={"x": {"default": None, "enum": [None, 1]}})
    asked = parse_request(request(WEATHER, SILENT, weather(name="n", parameters=nullable)))
    assert parse_request(asked.model_dump_json(by_alias=True)) == asked
    assert patched(asked, {"config": {"tools_per_turn": 0}}).config.tools == asked.config.tools
    assert patched(asked, {"config": {"tools": None}}).config.tools == []


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Tenant": "north", "Accept": "application/json"},
        {"Authorization": "${MESHAG_TOOL_A}"},
        {"authorization": "Token token=${MESHAG_TOOL_A}"},
        {"X-API-Key": "${MESHAG_TOOL_A}${MESHAG_TOOL_B_2}"},
        {"Cookie": "session=${MESHAG_TOOL_A}"},
        {"X-Note": "costs $5"},
    ],
)
def test_headers(headers: dict[str, str]) -> None:
    assert parse_request(request(weather(http={"url": "http://a.test", "headers": headers})))


@pytest.mark.parametrize(
    "parameters",
    [
        schema(),
        schema(**{"$schema": "https://json-schema.org/draft/2020-12/schema"}),
        schema(**{"$schema": "http://json-schema.org/draft-07/schema#"}),
        schema(properties={"when": {"type": "string", "format": "date", "pattern": r"^\d{4}-\d\d-\d\d$"}}),
        schema(properties={"x": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": {"type": "integer"}}}),
        schema(properties={"x": {"$ref": "#/definitions/a~1b%25"}}, definitions={"a/b%": {"type": "integer"}}),
        schema(properties={"tree": {"type": "array", "items": {"$ref": "#"}}}),
        schema(properties={"x": {"$ref": "#/anyOf/1/properties/y"}}, anyOf=[True, {"properties": {"y": {}}}]),
        schema(properties={"$id": {"type": "string"}, "$ref": {"type": "string"}, "patternProperties": {}}),
        schema(properties={"x": {"enum": list(range(1000))}}),
    ],
)
def test_schemas(parameters: dict[str, Any]) -> None:
    assert parse_request(request(weather(parameters=parameters))).config.tools[0].parameters == parameters


# -- what is refused --------------------------------------------------------------------------------------------------


def at(url: str = "https://a.test/", **headers: str) -> dict[str, Any]:
    return weather(http={"url": url, "headers": headers})


@pytest.mark.parametrize(
    ("tool", "path", "code", "fix"),
    [
        (weather(http=None), "", "tool_target", "give one of them"),
        (weather(nats={"subject": "tools.x"}), "", "tool_target", "give one of them"),
        (weather(name="get weather"), "name", "field_invalid", "fits"),
        (weather(name=""), "name", "field_invalid", "fits"),
        (weather(name="a" * 65), "name", "field_invalid", "fits"),
        (weather(name="a\n"), "name", "field_invalid", "fits"),
        (weather(name=None), "name", "field_missing", "add it"),
        (weather(description=None), "description", "field_missing", "add it"),
        (weather(description=""), "description", "field_invalid", "fits"),
        (weather(deadline_ms=99), "deadline_ms", "field_invalid", "100"),
        (weather(deadline_ms=60_001), "deadline_ms", "field_invalid", "60000"),
        (weather(say_after_ms=-1), "say_after_ms", "field_invalid", "0"),
        (weather(say="x" * 201), "say", "field_invalid", "fits"),
        (weather(sya=""), "sya", "field_unknown", "did you mean 'say'?"),
        (weather(http={"ulr": "https://a.test"}), "http.url", "field_missing", "add it"),
        (weather(http={"url": "https://a.test", "metod": "GET"}), "http.metod", "field_unknown", "'method'"),
        (weather(http={"url": "https://a.test", "method": "PUT"}), "http.method", "field_invalid", "'POST' or 'GET'"),
        (at("https://a.test/#part"), "http.url", "tool_url", "no fragment"),
        (at("https://2130706433/"), "http.url", "tool_url", "https://host/path"),
        (at("ftp://a.test/"), "http.url", "tool_url", "https://host/path"),
        (at(**{"A B": "x"}), 'http.headers."A B"', "tool_header", "letters"),
        (at(**{"X-A": "x\r\nHost: b"}), "http.headers.X-A", "tool_header", "printable"),
        (at(**{"X-A": "é"}), "http.headers.X-A", "tool_header", "printable"),
        (at(**{"X-A": "1", "x-a": "2"}), "http.headers.x-a", "tool_header", "keep one"),
        (at(**{"user-agent": "b"}), "http.headers.user-agent", "tool_header", "remove"),
        (at(Host="b.test"), "http.headers.Host", "tool_header", "remove"),
        (at(**{"idempotency-key": "1"}), "http.headers.idempotency-key", "tool_header", "remove"),
        (at(**{"X-MeshAG-Turn": "1"}), "http.headers.X-MeshAG-Turn", "tool_header", "remove"),
        (at(**{"X-A": "${PATH}"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${OPENAI_API_KEY}"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${MESHAG_TOOL_HOSTS}"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${MESHAG_TOOL_}"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${MESHAG_TOOL_A"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${${MESHAG_TOOL_A}}"}), "http.headers.X-A", "tool_secret", "MESHAG_TOOL_"),
        (at(**{"X-A": "${MESHAG_TOOL_A\n}"}), "http.headers.X-A", "tool_header", "printable"),
        (at(Authorization="Bearer sk-1"), "http.headers.Authorization", "tool_secret", "${MESHAG_TOOL_"),
        (at(Authorization="Bearer sk-1${MESHAG_TOOL_A}"), "http.headers.Authorization", "tool_secret", "MESHAG"),
        (at(**{"X-Api-Key": "sk-1"}), "http.headers.X-Api-Key", "tool_secret", "${MESHAG_TOOL_"),
        (at(cookie="a=b"), "http.headers.cookie", "tool_secret", "${MESHAG_TOOL_"),
        (at(**{"X-Auth": "abc"}), "http.headers.X-Auth", "tool_secret", "${MESHAG_TOOL_"),
        (at(**{"X-Access-Token": "abc"}), "http.headers.X-Access-Token", "tool_secret", "${MESHAG_TOOL_"),
        (at(**{"X-Any": "Bearer abc"}), "http.headers.X-Any", "tool_secret", "${MESHAG_TOOL_"),
    ],
)
def test_refused_tools(tool: dict[str, Any], path: str, code: str, fix: str) -> None:
    found = {(problem.path, problem.code): problem.fix for problem in refused(request(SILENT, tool))}
    where = "config.tools.1" + (f".{path}" if path else "")
    assert (where, code) in found, found
    assert fix in found[where, code]


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:hush@a.test/", "https://hush@a.test", "HTTP://a:hush@a.test:80?x", "http:/\\u:hush@a.test/"),
        *(f"https://a.test/?x=1&{name}=hush" for name in ("key", "token", "secret", "password", "sig", "signature")),
        *(f"https://a.test/?{name}=hush" for name in ("api_key", "apikey", "apiKey", "API-KEY", "%61pi_key", "auth")),
        *(f"https://a.test/?{name}=hush" for name in ("accesstoken", "AccessKeyId", "X-Amz-Signature", "oauth", "pwd")),
        *(
            "https://a.test/?a=1;token=hush",
            "https://a.test/?x=Bearer%20hush",
            "https://a.test/?key=${MESHAG_TOOL_hush}",
        ),
    ],
)
def test_a_secret_in_an_address_is_refused_and_never_repeated(url: str) -> None:
    (problem,) = refused(request(at(url)))
    assert (problem.path, problem.code) == ("config.tools.0.http.url", "tool_secret")
    assert "header" in problem.fix
    assert "${MESHAG_TOOL_" in problem.fix
    assert "hush" not in f"{problem}"
    with pytest.raises(ConfigProblems) as caught:
        patched(SessionRequest(), {"config": {"tools": [at(url)]}})
    assert "hush" not in f"{caught.value} {caught.value.problems}"


@pytest.mark.parametrize(
    "query",
    [
        *("city=Rome&k", "author=Tolkien", "max_tokens=5", "keyword=a", "monkey=1", "design=x", "key=", "token"),
        *("passenger=2", "signal=1", "secretary=1", "code=1", "q=the%20bearer%20of", "x=@", "x=key", "x=a?token"),
    ],
)
def test_an_ordinary_query_is_none(query: str) -> None:
    assert parse_request(request(at(f"https://a.test/?{query}")))


@pytest.mark.parametrize(
    "subject",
    [
        *(
            "tools",
            "tools.",
            "tools.>",
            "tools.*",
            "tools.a b",
            "tools..a",
            "tools.a.",
            " tools.a",
            "tools.a\n",
            "Tools.a",
        ),
        *("control.x", "audio.input.x", "$SYS.REQ", "_INBOX.a", "tool.a", "tools.a\r\nPUB control.x 0", "tools.ä", ""),
        *(
            "toolsa.b",
            "tools.a.b.c.d.e.f.g",
            f"tools.{'a' * 65}",
            "claim.llm.w1",
            "worker.llm.w",
            "$JS.API.STREAM.DELETE.x",
        ),
    ],
)
def test_a_session_cannot_reach_the_meshs_own_subjects(subject: str) -> None:
    (problem,) = refused(request(weather(http=None, nats={"subject": subject})))
    assert (problem.path, problem.code) == ("config.tools.0.nats.subject", "tool_subject")


@pytest.mark.parametrize("subject", ["tools.a", "tools.a.b-c.D_9.e.f.g"])
def test_subjects(subject: str) -> None:
    assert ToolNats(subject=subject).subject == subject


def test_too_many_tools_and_a_name_twice() -> None:
    many = [weather(name=f"t{i}") for i in range(33)]
    assert {(p.path, p.code) for p in refused(request(*many))} == {("config.tools", "field_invalid")}
    found = {(p.path, p.code) for p in refused(request(WEATHER, SILENT, WEATHER))}
    assert found == {("config.tools.2.name", "tool_duplicate")}
    assert {p.path for p in refused(request(tools_per_turn=17))} == {"config.tools_per_turn"}


REMOTE = [
    *("http://127.0.0.1/x", "https://json-schema.org/draft/2020-12/schema", "file:///etc/passwd", "x.json", "urn:x"),
    *("//a.test/x", "#anchor", "?x", "", "other#/$defs/x", "http://json-schema.org/draft-07/schema#"),
]


@pytest.mark.parametrize(
    ("parameters", "path", "code"),
    [
        ({}, "type", "tool_schema"),
        ({"type": "string"}, "type", "tool_schema"),
        ({"type": ["object"]}, "type", "tool_schema"),
        (schema(properties=[]), "properties", "tool_schema"),
        (schema(properties={"x": {"type": "strin"}}), "properties.x.type", "tool_schema"),
        (schema(properties={"x": {"items": [{}]}}), "properties.x.items", "tool_schema"),
        (schema(required="x"), "required", "tool_schema"),
        (schema(properties={"x": {"multipleOf": 0}}), "properties.x.multipleOf", "tool_schema"),
        (schema(properties={"x": {"description": "y" * 16_384}}), "", "tool_schema_too_large"),
        (schema(properties={f"p{i}": {} for i in range(128)}), "", "tool_schema_too_large"),
        (schema(properties={"x": {"type": ["string", 1] * 4}}), "properties.x.type", "tool_schema_too_large"),
        (schema(required=[1, "a"] * 70), "required", "tool_schema_too_large"),
        (schema(properties={"x": {"$ref": 1}}), "properties.x.$ref", "tool_schema_reference"),
        (schema(properties={"x": {"$ref": "#/$defs/x"}}), "properties.x.$ref", "tool_schema_reference"),
        (schema(**{"$ref": "#/enum/0"}, enum=[{"$ref": "http://a.test"}]), "$ref", "tool_schema_reference"),
        (schema(**{"$id": "http://a.test/"}), "$id", "tool_schema_keyword"),
        (schema(**{"$schema": "http://a.test/"}), "$schema", "tool_schema_keyword"),
        (schema(**{"$schema": 1}), "$schema", "tool_schema_keyword"),
        (
            schema(items={"$schema": "https://json-schema.org/draft/2020-12/schema"}),
            "items.$schema",
            "tool_schema_keyword",
        ),
        *(
            (schema(**{"$defs": {"x": {word: {}}}}), f"$defs.x.{word}", "tool_schema_keyword")
            for word in sorted(schemas.REFUSED)
        ),
        *((schema(properties={"x": {"$ref": ref}}), "properties.x.$ref", "tool_schema_reference") for ref in REMOTE),
    ],
)
def test_refused_schemas(parameters: dict[str, Any], path: str, code: str) -> None:
    found = {(p.path, p.code) for p in refused(request(weather(parameters=parameters)))}
    where = "config.tools.0.parameters" + ".".join(["", *(quoted(part) for part in path.split("."))] if path else [])
    assert (where, code) in found


def quoted(part: str) -> str:
    return part if re.fullmatch(r"[\w-]+", part) else json.dumps(part)


def test_every_problem_has_a_fix_and_no_secret_is_repeated() -> None:
    bad = weather(http={"url": "https://u:hush-1@a.test", "headers": {"Authorization": "hush-2", "X": "${hush-3}"}})
    problems = refused(request(bad, weather(parameters={}), weather(http=None)))
    assert all(problem.fix and problem.message for problem in problems)
    assert "hush" not in repr(problems)


# -- what the model wrote ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"city": "Paris", "unit": "c"}, []),
        ({"city": 5}, ["city: 5 is not of type 'string'"]),
        ({"city": ""}, ["city: '' should be non-empty"]),
        ({"unit": "k", "city": "x"}, ["unit: 'k' is not one of ['c', 'f']"]),
        ({}, ["'city' is a required property"]),
        ({"city": "x", "extra": 1}, ["Additional properties are not allowed ('extra' was unexpected)"]),
    ],
)
def test_arguments(value: Any, said: list[str]) -> None:
    assert value_problems(WEATHER["parameters"], value) == said


def test_little_is_told_of_much_that_is_wrong() -> None:
    wanted = schema(properties={f"p{i}": {"type": "string"} for i in range(100)})
    said = value_problems(wanted, {f"p{i}": ["x" * 1000] for i in range(100)})
    assert len(said) == 5
    assert max(map(len, said)) < 250


def test_long_lists_are_checked_to_their_end() -> None:
    wanted = schema(properties={"x": {"type": "array", "items": {"type": "string"}}})
    assert value_problems(wanted, {"x": ["a"] * 2000}) == []
    assert value_problems(wanted, {"x": [*["a"] * 2000, 1]}) == ["x.2000: 1 is not of type 'string'"]


def test_references_and_items_are_followed() -> None:
    tree = schema(properties={"kids": {"type": "array", "items": {"$ref": "#"}, "uniqueItems": True}})
    assert value_problems(tree, {"kids": [{"kids": []}, {}]}) == []
    assert value_problems(tree, {"kids": [{"kids": [{"kids": 1}]}]}) == ["kids.0.kids.0.kids: 1 is not of type 'array'"]
    assert value_problems(tree, {"kids": [{"a": 1, "b": [2]}, {"b": [2], "a": 1}]}) == ["kids: has the same item twice"]


@pytest.mark.parametrize("reference", REMOTE)
def test_nothing_is_ever_fetched(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a schema that nobody has checked."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("fetched"))
    for unchecked in (
        schema(properties={"x": {"$ref": reference}}),
        schema(properties={"x": {"$dynamicRef": reference}}),
        schema(**{"$id": reference}, properties={"x": {"$ref": "y"}}),
        schema(**{"$schema": reference}, properties={"x": {"$ref": "y"}}),
    ):
        value_problems(unchecked, {"x": 1})
        schema_problems(unchecked)


DOUBLING = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "object"}}
LONG = [[1]] * 4000
SQUARED = {
    "a": {"allOf": [{"$ref": "#/$defs/b"}] * 40},
    "b": {"allOf": [{"$ref": "#/$defs/c"}] * 40},
    "c": {"const": [LONG]},
}
STATED = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
HOSTILE: list[tuple[dict[str, Any], Any]] = [
    (schema(properties={"x": {"pattern": r"^(a+)+$"}}), {"x": "a" * 60 + "!"}),
    (schema(patternProperties={r"^(a+)+$": False}), {"a" * 60 + "!": 1}),
    (schema(**{"$ref": "#"}), {}),
    (schema(**{"$ref": "#/$defs/d0", "$defs": DOUBLING}), {}),
    (schema(**{"$ref": "#/$defs/d0", "$defs": DOUBLING, "unevaluatedProperties": False}), {"a": 1}),
    (schema(properties={"x": {"uniqueItems": True}}), {"x": [i if i % 2 else str(i) for i in range(5000)]}),
    (schema(properties={"x": {"items": {"anyOf": [{"type": "null"}] * 120}}}), {"x": list(range(8000))}),
    (schema(properties={"x": {"items": {"enum": list(range(1000))}}}), {"x": [-1] * 8000}),
    (schema(properties={"x": {"$ref": "#/$defs/a"}}, **{"$defs": SQUARED}), {"x": [json.loads(json.dumps(LONG))]}),
    (schema(properties={"x": {"pattern": "^(a+)+$"}, "y": {"$ref": "#"}}, **STATED), {"y": {"x": "a" * 60 + "!"}}),
    (schema(properties={"x": {"anyOf": [{"maxLength": 1}] * 120}}), {"x": "x" * 16_000}),
    (schema(properties={"x": {"multipleOf": 5e-324}}), {"x": 1e308}),
    (schema(properties={"x": {"$ref": "#/nowhere"}}), {"x": 1}),
]


@pytest.mark.parametrize(("wanted", "value"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_schemas_take_no_time(wanted: dict[str, Any], value: Any) -> None:
    value_problems(WEATHER["parameters"], {"city": "x"})  # the library is imported
    began = time.process_time()
    value_problems(wanted, value)
    assert time.process_time() - began < 1


def test_what_has_no_end_is_given_up_far_from_the_interpreters_limit() -> None:
    """There, the library's own library panics: no Exception, so that it would end the worker's task."""
    limit = sys.getrecursionlimit()
    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1
    try:
        sys.setrecursionlimit(used + 500)
        for endless in ({"$ref": "#"}, {"not": {"$ref": "#"}}, {"oneOf": [{"$ref": "#"}]}, {"if": {"$ref": "#"}}):
            value_problems(schema(**endless), {})
    finally:
        sys.setrecursionlimit(limit)


def test_work_that_is_given_up_refuses_the_arguments() -> None:
    said = ["too much to check: write something simpler"]
    assert value_problems(schema(**{"$ref": "#"}), {}) == said
    assert value_problems(schema(**{"not": {"$ref": "#"}}), {}) == said
    assert value_problems(schema(**{"$ref": "#/$defs/d0", "$defs": DOUBLING}), {}) == said
    assert value_problems(WEATHER["parameters"], {"city": "x"}) == []  # the next check has all its steps


@pytest.mark.parametrize(
    "word",
    [
        {"type": [i if i % 2 else str(i) for i in range(4000)]},
        {"required": [i if i % 2 else str(i) for i in range(4000)]},
        {"allOf": [{}] * 4000},
        {"properties": {f"p{i}": {} for i in range(1300)}},
    ],
)
def test_hostile_schemas_are_refused_soon(word: dict[str, Any]) -> None:
    refused(request(weather(parameters={})))
    body = request(*(weather(name=f"t{i}", parameters=schema(properties={"x": word})) for i in range(2)))
    began = time.process_time()
    assert {problem.code for problem in refused(body)} <= {"tool_schema_too_large", "body_too_large"}
    assert time.process_time() - began < 1


# -- anything ---------------------------------------------------------------------------------------------------------

WORDS = [
    *("type", "object", "properties", "items", "anyOf", "$ref", "#", "#/$defs/a", "$defs", "enum", "required", "a"),
    *("name", "description", "parameters", "http", "nats", "url", "subject", "headers", "additionalProperties", "not"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.floats(allow_nan=False) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values)
def test_any_tool_is_a_tool_or_a_problem(value: object) -> None:
    for body in (request(value), json.dumps({"config": {"tools": value}}), request(weather(parameters=value))):
        try:
            asked = parse_request(body)
        except ConfigProblems as error:
            str(error).encode()
        else:
            assert parse_request(asked.model_dump_json(by_alias=True)) == asked


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(WORDS), json_values, max_size=5), json_values)
def test_any_schema_and_any_value(wanted: dict[str, Any], value: object) -> None:
    wanted = {**wanted, "type": "object"}
    assert all(isinstance(said, str) for said in value_problems(wanted, value))
    if not schema_problems(wanted):
        assert not any(said.startswith("cannot be checked") for said in value_problems(wanted, value))


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_the_schema_library_is_imported_when_it_is_needed() -> None:
    code = (
        "import sys, meshag.cli, meshag.sessions.config as c, meshag.connectors.tools as t; c.parse_request('{}');"
        "t.Tools(None); assert not {'jsonschema', 'referencing'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_stored_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parse_request(request(WEATHER))
    monkeypatch.setattr("meshag.sessions.tools.schema_problems", lambda _: pytest.fail("checked"))
    assert SessionRequest.model_validate(asked.model_dump(mode="json", by_alias=True), context=STORED) == asked
    body = {"config": {"tools": [at("https://a.test/?key=1")]}}  # of a release that took it
    assert SessionRequest.model_validate(body, context=STORED).config.tools


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [ToolConfig, ToolHttp, ToolNats])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert re.search(rf"^\| `(?:http\.|nats\.)?{name}` \|", PAGE, re.MULTILINE), name
        assert field.description, name


def test_every_request_of_the_page_is_accepted() -> None:
    blocks = re.findall(r"^```json request\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    assert all(parse_request(block).config.tools for block in blocks)


def test_every_code_is_explained() -> None:
    sources = [ROOT / "src/meshag" / path for path in ("sessions/tools.py", "sessions/schemas.py")]
    sources += [ROOT / "src/meshag/connectors" / path for path in ("tools.py", "addresses.py", "states.py")]
    text = "".join(path.read_text() for path in sources)
    codes = set(re.findall(r'"((?:tools?|address|secret|invalid)_[a-z_]+)"', text))
    assert len(codes) > 12
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()
