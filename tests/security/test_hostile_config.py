"""Whatever is sent as a configuration: a ConfigError, soon, or a configuration."""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshag.errors import ConfigError
from meshag.sessions.config import ConfigProblems, SessionRequest, parse_request, patched
from meshag.sessions.problems import MOST

pytestmark = pytest.mark.security


def code_of(body: bytes | str) -> str:
    began = time.perf_counter()
    with pytest.raises(ConfigProblems) as caught:
        parse_request(body)
    assert time.perf_counter() - began < 2
    assert 1 <= len(caught.value.problems) <= MOST
    return caught.value.code


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


TEN_MB = 10_000_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "body_not_json"),
        (b"\xff\xfe{}", "body_not_json"),
        ("{}".encode("utf-16"), "body_not_json"),
        (b"{", "body_not_json"),
        (b"{} {}", "body_not_json"),
        (b"{'a': 1}", "body_not_json"),
        (b"null", "body_not_object"),
        (b"[]", "body_not_object"),
        (b'"x"', "body_not_object"),
        (b"\x00" * 10, "body_not_json"),
        (b" " * TEN_MB, "body_too_large"),
        (b'{"session_name": "' + b"a" * TEN_MB + b'"}', "body_too_large"),
        ("é" * 40_000, "body_too_large"),
        (b"[" * 100_000, "body_too_large"),
        (b"[" * 60_000, "body_too_deep"),
        (b'{"a":' * 12_000, "body_too_deep"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "body_too_deep"),
        (b'{"a":' * 16 + b"1" + b"}" * 16, "field_unknown"),
        (b'{"a": "' + b"[" * 50_000 + b'"}', "field_unknown"),
        (b'"' + b'\\"' * 30_000, "body_not_json"),
        (b'"' + b'\\"' * 30_000 + b"\\", "body_not_json"),
        (b'{"max_participants": ' + b"9" * 60_000 + b"}", "number_out_of_range"),
        (b'{"max_participants": 9999999999999999999}', "number_out_of_range"),
        (b'{"max_participants": 1e999}', "number_out_of_range"),
        (b'{"max_participants": NaN}', "number_out_of_range"),
        (b'{"max_participants": -Infinity}', "number_out_of_range"),
        (b'{"max_participants": 1.0}', "field_invalid"),
        (b'{"max_participants": 2, "max_participants": 3}', "duplicate_key"),
        (b'{"config": {"turns": {}, "turns": {}}}', "duplicate_key"),
        (b'{"session_name": "\\ud800"}', "text_invalid"),
        (b'{"\\ud800": 1}', "text_invalid"),
        (b'{"config": {"system_prompt": "a\\u0000b"}}', "text_invalid"),
        ('{"session_name": "\ud800"}', "text_invalid"),
        ("{" + ",".join(f'"k{i}": 1' for i in range(5000)) + "}", "field_unknown"),
        ("{" + ",".join(f'"k{i}": 1' for i in range(5000)) + ',"k4999":2}', "duplicate_key"),
        (json.dumps({f"k{i}": "\x00" for i in range(MOST * 3)}), "text_invalid"),
        ('{"' + "x" * 60_000 + '": 1}', "field_unknown"),
        ('{"config": {"pipeline": {"flow": [' + ",".join(["{}"] * 10_000) + "]}}}", "field_invalid"),
        ('{"config": {"pipeline": {"flow": [' + ",".join(["[" + "]"] * 10_000) + "]}}}", "field_invalid"),
    ],
    ids=range(39),
)
def test_hostile_bodies(body: bytes | str, code: str) -> None:
    assert code_of(body) == code


def test_a_duplicate_key_is_found_where_it_stands() -> None:
    with pytest.raises(ConfigProblems) as caught:
        parse_request('{"config": {"turns": {"vad": "silero", "vad": "provider"}}}')
    assert caught.value.path == "config.turns.vad"


def test_no_value_is_repeated_in_the_error() -> None:
    for body in ('{"config": {"turns": "sk-secret"}}', '{"config": {"connectors": {"stt": {"primary": "sk secret"}}}}'):
        with pytest.raises(ConfigProblems) as caught:
            parse_request(body)
        assert "secret" not in f"{caught.value} {caught.value.problems} {caught.value.__cause__}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=30,
)
FIELDS = [
    *("config", "session_name", "max_participants", "ttl_s", "enable_recording", "system_prompt", "pipeline"),
    *("connectors", "turns", "name", "flow", "from", "to", "stream", "stt", "llm", "tts", "transport", "primary"),
    *("fallback", "local", "vad", "start_ms"),
]
leaves = json_values | st.sampled_from(["transport", "stt", "llm", "tts", "audio", "text", "local", "silero"])
plausible = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=40,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values | plausible)
def test_any_json_is_a_request_or_a_config_error(value: object) -> None:
    try:
        asked = parse_request(json.dumps(value))
    except ConfigError as error:
        str(error).encode()
    else:
        assert parse_request(asked.model_dump_json(by_alias=True)) == asked


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200)
    | st.text(st.characters(codec=None), max_size=200)
    | st.text('{}[]":,\\ au01e-', max_size=60)
)
def test_any_bytes_are_a_request_or_a_config_error(body: bytes | str) -> None:
    try:
        assert isinstance(parse_request(body), SessionRequest)
    except ConfigError as error:
        str(error).encode()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values | plausible)
def test_any_patch_is_a_request_or_a_config_error(patch: object) -> None:
    try:
        asked = patched(SessionRequest(), patch)
    except ConfigError:
        return
    assert parse_request(asked.model_dump_json(by_alias=True)) == asked


def test_patches_that_are_no_json() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    looped: list[Any] = []
    looped.append(looped)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for patch in (
        endless,
        {"a": looped},
        {"a": nested},
        {1: 2},
        {(): 1},
        {"a": {1, 2}},
        {"a": object()},
        deep(100_000),
    ):
        with pytest.raises(ConfigError):
            patched(SessionRequest(), patch)


def test_a_configuration_cannot_grow_without_end_by_patches() -> None:
    body = {"config": {"connectors": {"stt": {"primary": "x"}}}}
    asked = parse_request(json.dumps(body))

    def grow(by: int) -> SessionRequest:
        more = {f"k{by}": "y" * 30_000}
        return patched(asked, {"config": {"connectors": {"stt": {"config": {"x": more}}}}})

    for i in range(4):
        asked = grow(i)
    with pytest.raises(ConfigProblems) as caught:
        grow(5)
    assert caught.value.code == "body_too_large"
