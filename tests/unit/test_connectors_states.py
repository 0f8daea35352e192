"""What stands in the way of a session's tools here, told when it is created."""

import json
from pathlib import Path
from typing import Any

import pytest

from meshag.cli import main
from meshag.connectors.addresses import Hosts
from meshag.connectors.contracts import Availability, Connector, LlmConnector, Options
from meshag.connectors.registry import Registry
from meshag.connectors.states import session_problems
from meshag.sessions.config import parse_request
from meshag.sessions.problems import Problem

pytestmark = pytest.mark.unit


class NoOptions(Options):
    """None."""


class Talks(LlmConnector):
    options = NoOptions

    def reply(self, request: Any) -> Any:
        raise NotImplementedError


class Calls(Talks):
    tools = True


class Absent(Calls):
    def availability(self) -> Availability:
        return Availability(False, "set SOME_KEY")


class Other(Connector):
    options = NoOptions


MODELS = {"talks": Talks(), "mutters": Talks(), "calls": Calls(), "calls_too": Calls(), "absent": Absent()}

TOOL = {"name": "t", "description": "d", "http": {"url": "https://a.test/"}}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(registry, "names", lambda stage: list(MODELS) if stage == "llm" else ["local", "websocket"])
    monkeypatch.setattr(registry, "get", lambda stage, name: MODELS[name] if stage == "llm" else Other())
    return registry


def problems(registry: Registry, llm: list[str], tools: list[Any], hosts: str = "", **more: Any) -> list[Problem]:
    chosen = {"llm": {"primary": llm[0], "fallback": llm[1:]}}
    body = {"config": {"connectors": chosen, "tools": tools, **more}}
    return session_problems(registry, Hosts(hosts), parse_request(json.dumps(body)))


def told(found: list[Problem]) -> list[tuple[str, str, bool]]:
    return [(problem.path, problem.code, problem.warning) for problem in found]


# -- models -----------------------------------------------------------------------------------------------------------


def test_models_that_call_are_good(registry: Registry) -> None:
    assert problems(registry, ["calls", "calls_too"], [TOOL]) == []


@pytest.mark.parametrize("llm", [["talks"], ["talks", "mutters"]])
def test_models_of_which_none_calls_are_refused(registry: Registry, llm: list[str]) -> None:
    (problem,) = problems(registry, llm, [TOOL])
    assert (problem.path, problem.code) == ("config.connectors.llm", "tools_not_called")
    assert "(calls, calls_too)" in problem.fix  # those that could be named instead; not the absent one
    assert not problem.warning


def test_the_first_has_to_call_and_the_fix_names_the_sessions_own(registry: Registry) -> None:
    (problem,) = problems(registry, ["talks", "calls_too"], [TOOL])
    assert not problem.warning
    assert "(calls_too)" in problem.fix


def test_the_first_that_can_work_has_to_call(registry: Registry) -> None:
    found = told(problems(registry, ["absent", "talks"], [TOOL]))
    assert ("config.connectors.llm", "tools_not_called", False) in found
    assert told(problems(registry, ["absent", "calls"], [TOOL])) == [
        ("config.connectors.llm.primary", "provider_unavailable", True)
    ]


def test_a_fallback_that_does_not_call_is_a_warning(registry: Registry) -> None:
    found = told(problems(registry, ["calls", "talks", "calls_too", "mutters"], [TOOL]))
    assert found == [
        ("config.connectors.llm.fallback.0", "tools_not_called", True),
        ("config.connectors.llm.fallback.2", "tools_not_called", True),
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"tools_per_turn": 0},
        {"pipeline": {"flow": [{"from": a, "to": b, "stream": s} for a, b, s in (
            ("transport", "stt", "audio"), ("stt", "transport", "text"))]}},
    ],
    ids=["no calls", "no model"],
)  # fmt: skip
def test_where_nothing_is_called_nothing_is_wrong(registry: Registry, more: dict[str, Any]) -> None:
    assert problems(registry, ["talks"], [{**TOOL, "http": {"url": "http://10.0.0.1/"}}], **more) == []


def test_no_tools_want_nothing(registry: Registry) -> None:
    assert problems(registry, ["talks"], []) == []


# -- addresses --------------------------------------------------------------------------------------------------------


def test_a_tool_that_could_not_be_reached_is_refused(registry: Registry) -> None:
    places: list[dict[str, Any]] = [
        {"url": "https://a.test/"},
        {"url": "http://10.0.0.1/"},
        {"url": "http://localhost:9000/"},
        {"url": "https://a.test/", "headers": {"Authorization": "Bearer ${MESHAG_TOOL_KEY}"}},
    ]
    tools = [{**TOOL, "name": f"t{n}", "http": place} for n, place in enumerate(places)]
    found = problems(registry, ["calls"], tools)
    assert told(found) == [
        ("config.tools.1.http.url", "address_refused", False),
        ("config.tools.2.http.url", "address_refused", False),
        ("config.tools.3.http.headers", "secret_refused", False),
    ]
    assert all("MESHAG_TOOL_HOSTS" in problem.fix for problem in found)
    assert problems(registry, ["calls"], tools, hosts="10.0.0.1, localhost:9000, a.test") == []


def test_the_command_line_knows_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHAG_CONNECTORS", "llm:calls=test_connectors_states:Calls")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    stages = {stage: {"primary": "calls"} for stage in ("stt", "llm", "tts")}
    flow = [{"from": a, "to": b, "stream": "text"} for a, b in (("transport", "llm"), ("llm", "transport"))]
    tools = [{**TOOL, "http": {"url": "http://10.0.0.1/"}}]
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({"config": {"connectors": stages, "tools": tools, "pipeline": {"flow": flow}}}))

    def status(hosts: str) -> object:
        monkeypatch.setenv("MESHAG_TOOL_HOSTS", hosts)
        with pytest.raises(SystemExit) as ended:
            main(["config", "check", str(file)])
        return ended.value.code

    assert status("") == 1
    said = capsys.readouterr().out
    assert "error: config.tools.0.http.url: refused: not a public address" in said
    assert "fix: name the host in MESHAG_TOOL_HOSTS" in said
    assert status("10.0.0.1") == 0
    assert status("http://10.0.0.1") == 2
    assert "MESHAG_TOOL_HOSTS: 'http://10.0.0.1' is no host" in capsys.readouterr().err
