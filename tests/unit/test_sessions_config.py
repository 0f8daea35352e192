"""A session's configuration: what is accepted, what is refused and how that is said."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meshag.errors import ConfigError
from meshag.sessions.config import (
    ConfigProblems,
    Edge,
    Problem,
    ProviderState,
    SessionConfig,
    SessionRequest,
    check_providers,
    effective,
    feeds,
    hears,
    listeners,
    parse_request,
    patched,
    read_json,
    sources,
    stages_of,
)
from meshag.subjects import Stage

pytestmark = pytest.mark.unit

VENDORS = {
    "config": {
        "connectors": {
            "stt": {"primary": "openai", "fallback": ["deepgram"], "config": {"openai": {"model": "whisper-1"}}},
            "llm": {"primary": "openai", "fallback": ["anthropic"]},
            "tts": {"primary": "elevenlabs", "fallback": ["azure"]},
            "transport": {"primary": "daily", "config": {}},
        }
    }
}

VOICE = "transport>stt:audio stt>llm:text llm>tts:text tts>transport:audio"


def flow(text: str) -> list[dict[str, str]]:
    """`transport>stt:audio stt>transport:text` as JSON."""
    edges = [edge.replace(">", ":").split(":") for edge in text.split()]
    return [{"from": a, "to": b, "stream": stream} for a, b, stream in edges]


def request(text: str) -> SessionRequest:
    return parse_request(json.dumps({"config": {"pipeline": {"flow": flow(text)}}}))


def refused(body: Any) -> list[Problem]:
    """The problems of a body that is refused."""
    with pytest.raises(ConfigProblems) as caught:
        parse_request(body if isinstance(body, bytes | str) else json.dumps(body))
    return caught.value.problems


def found(body: Any) -> set[tuple[str, str]]:
    """The path and code of each of its problems."""
    return {(problem.path, problem.code) for problem in refused(body)}


# -- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["{}", '{"config": {}}', b'\xef\xbb\xbf{"config": {"turns": {}, "pipeline": {}}}'])
def test_what_is_left_out_has_a_default(body: str | bytes) -> None:
    assert parse_request(body) == SessionRequest()


def test_the_defaults() -> None:
    config = SessionConfig()
    assert [(e.from_, e.to, e.stream) for e in config.pipeline.flow] == [
        ("transport", "stt", "audio"),
        ("stt", "llm", "text"),
        ("llm", "tts", "text"),
        ("tts", "transport", "audio"),
    ]
    assert [config.connectors.of(stage).primary for stage in ("stt", "llm", "tts", "transport")] == [
        *["local"] * 3,
        "websocket",
    ]
    assert SessionRequest().enable_transcription


def test_a_request_survives_its_own_json() -> None:
    asked = parse_request(json.dumps(VENDORS))
    assert parse_request(asked.model_dump_json(by_alias=True)) == asked


def test_nothing_can_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        SessionRequest().config.turns.start_ms = 5  # type: ignore[misc]


def test_the_json_schema_describes_every_field() -> None:
    schema = SessionRequest.model_json_schema(by_alias=True)
    for name, part in {"SessionRequest": schema, **schema["$defs"]}.items():
        for field, said in part["properties"].items():
            assert said.get("description"), (name, field)


# -- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "path", "code", "fix"),
    [
        ({"confg": {}}, "confg", "field_unknown", "did you mean 'config'?"),
        ({"config": {"turns": {"end_silence": 1}}}, "config.turns.end_silence", "field_unknown", "end_silence_ms"),
        ({"zzz": 1}, "zzz", "field_unknown", "known fields: config, session_name"),
        ({"max_participants": "1"}, "max_participants", "field_invalid", "a valid integer"),
        ({"max_participants": True}, "max_participants", "field_invalid", "a valid integer"),
        ({"max_participants": 0}, "max_participants", "field_invalid", "greater than or equal to 1"),
        ({"enable_recording": 1}, "enable_recording", "field_invalid", "a valid boolean"),
        ({"ttl_s": 9}, "ttl_s", "field_invalid", "10"),
        ({"session_name": "a\nb"}, "session_name", "field_invalid", ""),
        ({"session_name": "a" * 201}, "session_name", "field_invalid", ""),
        ({"config": {"system_prompt": "a" * 32_001}}, "config.system_prompt", "field_invalid", ""),
        ({"config": None}, "config", "field_invalid", ""),
        ({"config": {"turns": {"end_silence_ms": 99}}}, "config.turns.end_silence_ms", "field_invalid", "100"),
        ({"config": {"turns": {"vad": "silro"}}}, "config.turns.vad", "field_invalid", "did you mean 'silero'?"),
        ({"config": {"connectors": {"sst": {}}}}, "config.connectors.sst", "field_unknown", "did you mean 'stt'?"),
        ({"config": {"connectors": {"stt": {}}}}, "config.connectors.stt.primary", "field_missing", "add it"),
        ({"a b": 1}, '"a b"', "field_unknown", "known fields"),
        (
            {"config": {"pipeline": {"flow": [{"from_": "transport", "to": "llm", "stream": "text"}]}}},
            "config.pipeline.flow.0.from_",
            "field_unknown",
            "did you mean 'from'?",
        ),
        (
            {"config": {"connectors": {"stt": {"primary": "a>b"}}}},
            "config.connectors.stt.primary",
            "field_invalid",
            "",
        ),
    ],
)
def test_a_field_that_is_wrong(body: Any, path: str, code: str, fix: str) -> None:
    problem = next(problem for problem in refused(body) if problem.path == path)
    assert problem.code == code
    assert fix in problem.fix
    assert problem.message
    assert problem.fix


def test_everything_that_is_wrong_is_said_at_once() -> None:
    body = {
        "max_participants": 0,
        "config": {
            "sytem_prompt": "",
            "pipeline": {"flow": flow("transport>stt:audio")},
            "connectors": {"tts": {"primary": "a", "fallback": ["a"], "config": {"b": {}}}},
        },
    }
    assert found(body) == {
        ("max_participants", "field_invalid"),
        ("config.sytem_prompt", "field_unknown"),
        ("config.pipeline.flow.0.to", "flow_unheard"),
        ("config.connectors.tts.fallback.0", "provider_duplicate"),
        ("config.connectors.tts.config.b", "provider_unlisted"),
    }


def test_the_error_is_of_the_tree_and_names_the_first_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request('{"zzz": 1}')
    assert (caught.value.path, caught.value.code) == ("zzz", "field_unknown")
    assert "known fields" in caught.value.fix
    with pytest.raises(ConfigError) as caught:
        parse_request('{"zzz": 1, "ttl_s": 1}')
    assert (caught.value.code, str(caught.value)[-12:]) == ("config_invalid", " (and 1 more)"[-12:])


# -- the flow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        (VOICE, ("stt", "llm", "tts")),
        ("transport>llm:text llm>transport:text", ("llm",)),
        ("transport>stt:audio stt>transport:text", ("stt",)),
        ("transport>tts:text tts>transport:audio", ("tts",)),
        (VOICE + " stt>transport:text llm>transport:text", ("stt", "llm", "tts")),
        (VOICE + " transport>llm:text", ("stt", "llm", "tts")),
        ("transport>stt:audio stt>tts:text tts>transport:audio", ("stt", "tts")),
    ],
)
def test_flows_that_reach_their_end(text: str, stages: tuple[Stage, ...]) -> None:
    assert stages_of(request(text).config) == stages


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", {("flow", "flow_empty")}),
        ("transport>sst:audio", {("flow.0.to", "stage_unknown")}),
        ("transport>stt:video stt>transport:text", {("flow.0.stream", "field_invalid")}),
        ("stt>llm:text llm>transport:text", {("flow.0.from", "flow_unfed")}),
        ("transport>stt:audio stt>llm:text", {("flow.1.to", "flow_unheard")}),
        (VOICE + " stt>llm:text", {("flow.4", "flow_duplicate_edge")}),
        (VOICE + " llm>llm:text", {("flow.4", "flow_self_edge")}),
        (
            "transport>transport:audio",
            {("flow.0", "flow_self_edge"), ("flow", "flow_no_end"), ("flow", "flow_no_start")},
        ),
        ("transport>stt:text stt>transport:text", {("flow.0.stream", "flow_stream")}),
        ("transport>llm:text llm>transport:audio", {("flow.1.stream", "flow_stream")}),
        (VOICE + " tts>llm:audio", {("flow.4.stream", "flow_stream"), ("flow.4", "flow_cycle")}),
        (VOICE + " tts>stt:audio", {("flow.4.from", "flow_stream"), ("flow.4", "flow_cycle")}),
        (
            "stt>llm:text llm>stt:text",
            {
                ("flow.1.stream", "flow_stream"),
                ("flow.1", "flow_cycle"),
                ("flow", "flow_no_end"),
                ("flow", "flow_no_start"),
            },
        ),
        (
            "tts>transport:audio stt>llm:text",
            {("flow.0.from", "flow_unfed"), ("flow.1.from", "flow_unfed"), ("flow.1.to", "flow_unheard")},
        ),
    ],
)
def test_flows_that_do_not(text: str, problems: set[tuple[str, str]]) -> None:
    body = {"config": {"pipeline": {"flow": flow(text)}}}
    assert found(body) == {(f"config.pipeline.{path}", code) for path, code in problems}


def test_a_circle_is_named() -> None:
    (said,) = [
        p.message
        for p in refused({"config": {"pipeline": {"flow": flow(VOICE + " tts>stt:audio")}}})
        if p.code == "flow_cycle"
    ]
    assert said.startswith("tts → stt → llm → tts is a circle")


def test_a_flow_has_at_most_24_connections() -> None:
    assert found({"config": {"pipeline": {"flow": flow(VOICE) * 7}}}) == {("config.pipeline.flow", "field_invalid")}


def test_who_feeds_whom() -> None:
    config = request(VOICE + " stt>transport:text transport>llm:text").config
    assert feeds(config, "stt") == [Edge(from_="transport", to="stt", stream="audio")]
    assert sources(config, "llm") == ["stt", "transport"]
    assert sources(config, "transport") == ["tts", "stt"]
    assert listeners(config, "stt") == ["llm", "transport"]
    assert hears(config, "transport", "stt")
    assert hears(config, "transport", "stt", "text")
    assert not hears(config, "transport", "stt", "audio")
    assert not hears(config, "transport", "llm")


# -- providers --------------------------------------------------------------------------------------------------------


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = ""
    speed: float = Field(default=1.0, le=2.0)


def lookup(stage: Stage, name: str) -> ProviderState:
    if name == ("websocket" if stage == "transport" else "local"):
        return ProviderState(True, True, "", Options)
    return ProviderState(True, False, "set OPENAI_API_KEY") if name == "openai" else ProviderState(False)


def names(stage: Stage) -> list[str]:
    return ["websocket"] if stage == "transport" else ["local", "openai"]


def test_the_default_providers_are_there() -> None:
    assert check_providers(SessionRequest(), lookup, names) == []


def test_only_absent_providers_is_an_error_that_names_those_that_are_there() -> None:
    problems = check_providers(parse_request(json.dumps(VENDORS)), lookup, names)
    assert not any(problem.warning for problem in problems)
    absent = {problem.path: problem for problem in problems if problem.code == "providers_absent"}
    assert set(absent) == {f"config.connectors.{stage}" for stage in ("stt", "llm", "tts", "transport")}
    assert absent["config.connectors.stt"].message == "names only absent providers: openai, deepgram"
    assert absent["config.connectors.stt"].fix == "available for stt: local; set primary to 'local'"
    assert absent["config.connectors.transport"].fix == "available for transport: websocket; set primary to 'websocket'"


def test_an_absent_provider_beside_a_present_one_is_a_warning() -> None:
    body = {"config": {"connectors": {"stt": {"primary": "openai", "fallback": ["deepgram", "local"]}}}}
    problems = check_providers(parse_request(json.dumps(body)), lookup, names)
    assert [(p.path, p.code, p.warning) for p in problems] == [
        ("config.connectors.stt.primary", "provider_unavailable", True),
        ("config.connectors.stt.fallback.0", "provider_unknown", True),
    ]
    assert problems[0].fix == "set OPENAI_API_KEY"
    assert problems[1].fix == "available: local"


def test_stages_that_the_flow_leaves_out_are_not_checked() -> None:
    body = {
        "config": {
            "pipeline": {"flow": flow("transport>llm:text llm>transport:text")},
            "connectors": {"stt": {"primary": "nobody"}},
        }
    }
    assert check_providers(parse_request(json.dumps(body)), lookup, names) == []


def test_the_options_of_a_provider_are_checked_by_its_own_model() -> None:
    body = {"config": {"connectors": {"tts": {"primary": "local", "config": {"local": {"modl": "a", "speed": 3}}}}}}
    problems = check_providers(parse_request(json.dumps(body)), lookup, names)
    assert [(p.path, p.code, p.fix, p.warning) for p in problems] == [
        ("config.connectors.tts.config.local.speed", "field_invalid", "make it less than or equal to 2", False),
        ("config.connectors.tts.config.local.modl", "field_unknown", "did you mean 'model'?", False),
    ]


def test_effective_keeps_the_order() -> None:
    body = {"config": {"connectors": {"llm": {"primary": "c", "fallback": ["a", "b"]}}}}
    config = parse_request(json.dumps(body)).config
    assert effective(config, "llm", {"a", "b", "c"}.__contains__) == ["c", "a", "b"]
    assert effective(config, "llm", {"b", "c"}.__contains__) == ["c", "b"]


# -- patches ----------------------------------------------------------------------------------------------------------


def test_a_patch_changes_what_it_names_and_nothing_else() -> None:
    before = parse_request('{"session_name": "mine", "config": {"turns": {"start_ms": 100, "preroll_ms": 100}}}')
    after = patched(before, {"config": {"system_prompt": "Hi.", "turns": {"start_ms": None}}})
    assert after == parse_request(
        '{"session_name": "mine", "config": {"system_prompt": "Hi.", "turns": {"preroll_ms": 100}}}'
    )
    assert before.config.turns.start_ms == 100


def test_an_empty_patch_changes_nothing_and_a_list_is_replaced_whole() -> None:
    before = parse_request(json.dumps(VENDORS))
    assert patched(before, {}) == before
    chat = flow("transport>llm:text llm>transport:text")
    assert stages_of(patched(before, {"config": {"pipeline": {"flow": chat}}}).config) == ("llm",)


def test_options_are_merged_and_taken_away() -> None:
    before = parse_request(json.dumps(VENDORS))
    options = {"config": {"connectors": {"stt": {"config": {"openai": {"model": None, "language": "de"}}}}}}
    assert patched(before, options).config.connectors.stt.config == {"openai": {"language": "de"}}


@pytest.mark.parametrize(
    ("patch", "path", "code"),
    [
        ({"config": {"turns": {"start_ms": -1}}}, "config.turns.start_ms", "field_invalid"),
        ({"config": {"connectors": {"stt": {"primary": None}}}}, "config.connectors.stt.primary", "field_missing"),
        ({"nothing": 1}, "nothing", "field_unknown"),
        ([], "", "body_not_object"),
        (None, "", "body_not_object"),
        ("x", "", "body_not_object"),
    ],
)
def test_a_patch_is_checked_like_a_request(patch: object, path: str, code: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        patched(SessionRequest(), patch)
    assert [(problem.path, problem.code) for problem in caught.value.problems] == [(path, code)]


def test_read_json_reads_any_value() -> None:
    assert read_json(b'[1, 2.5, "a", null, {"a": true}]') == [1, 2.5, "a", None, {"a": True}]
