"""The command line as a person meets it: help, usage, configuration files. Nothing is started here."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from meshag import cli
from meshag.commands import doctor
from meshag.commands.common import url_from
from meshag.commands.demo import Show, Talk, say_next, where
from meshag.commands.doctor import Finding
from meshag.commands.up import parse_workers
from meshag.errors import ConfigError
from meshag.models import command
from meshag.settings import Settings

pytestmark = pytest.mark.unit


def run(*words: str) -> int:
    """The exit status of a command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


def parsers(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def every_command() -> list[str]:
    found = {made.prog for name in cli.COMMANDS for made in parsers(cli.parser(name))}
    return sorted(found)


@pytest.mark.parametrize("command", every_command())
def test_help_has_an_example_on_lines_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split()[1:], "--help") == 0
    shown = capsys.readouterr().out
    lines = shown[shown.index("example") :].splitlines()
    assert any(line.startswith("  ") and "meshag" in line for line in lines[1:]), shown
    assert max(map(len, lines)) <= 120


def test_every_command_is_there() -> None:
    listed = cli.parser().format_help()
    for name in ("run", "up", "serve", "demo", "doctor", "session", "key", "config", "models"):
        assert f"\n    {name} " in listed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nonsense"], "nonsense"),
        ([], "COMMAND"),
        (["up", "--port-base", "99999"], "--port-base"),
        (["up", "--port-base", "eight"], "'eight'"),
        (["up", "--workers", "stt"], "'stt'"),
        (["up", "--workers", "stt=0"], "'stt=0'"),
        (["up", "--workers", "vad=2"], "'vad=2'"),
        (["serve", "vad"], "vad"),
        (["serve", "stt", "--port", "0"], "--port"),
        (["session", "list", "--limit", "0"], "--limit"),
        (["session", "list", "--url", "localhost:8084"], "localhost:8084"),
        (["session", "create", "no-such-file.json"], "no-such-file.json"),
        (["key", "create"], "--name"),
        (["key", "create", "--name", " "], "--name"),
        (["key", "create", "--name", "x", "--scope", "all"], "'all'"),
        (["key", "revoke", "*"], "API key"),
        (["config", "check", "no-such-file.json"], "no-such-file.json"),
        (["demo", "--wav", "no-such-file.wav"], "no-such-file.wav"),
        (["run", "--no-pull", "--out", "no/such/place.wav"], "no/such/place.wav"),
    ],
)
def test_what_is_asked_for_wrongly_is_named_with_the_fix(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert named in first
    assert second.startswith("  fix: ")


def test_a_setting_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MESHAG_PORT_BASE", "eight")
    assert run("doctor") == 2
    assert "MESHAG_PORT_BASE" in capsys.readouterr().err


def test_workers() -> None:
    assert parse_workers("stt=1, llm=3,") == {"stt": 1, "llm": 3}
    with pytest.raises(ConfigError):
        parse_workers("stt=33")


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:9004"), ("::", "http://[::1]:9004"), ("10.0.0.5", "http://10.0.0.5:9004")],
)
def test_the_mesh_is_looked_for_where_it_can_be_reached(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHAG_HOST", host)
    assert url_from(argparse.Namespace(url=None, port_base=9001)) == url


def test_the_mesh_of_meshag_url_unless_the_command_names_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHAG_URL", "https://voice.example.com/")
    assert url_from(argparse.Namespace(url=None, port_base=None)) == "https://voice.example.com"
    assert url_from(argparse.Namespace(url="http://localhost:9", port_base=None)) == "http://localhost:9"
    assert url_from(argparse.Namespace(url=None, port_base=9001)) == "http://127.0.0.1:9004"
    monkeypatch.setenv("MESHAG_URL", "voice")
    assert run("session", "list") == 2
    assert "MESHAG_URL: 'voice'" in capsys.readouterr().err


# -- config check, models ---------------------------------------------------------------------------------------------


def test_config_check_says_that_a_good_file_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHAG_CONNECTORS", _INSTANT)
    (tmp_path / "agent.json").write_text(json.dumps({"config": {"connectors": _CONNECTORS}}))
    assert run("config", "check", str(tmp_path / "agent.json")) == 0
    assert "good" in capsys.readouterr().out


def test_config_check_names_every_problem_and_its_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.json").write_text('{"config": {"pipelines": 1, "system_prompt": 2}}')
    assert run("config", "check", str(tmp_path / "agent.json")) == 1
    said = capsys.readouterr().out
    assert said.count("error: ") == 2
    assert said.count("  fix: ") == 2
    assert "config.pipelines" in said
    assert "config.system_prompt" in said


def test_config_check_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"not json")))
    assert run("config", "check", "-") == 1
    assert "standard input: would be refused" in capsys.readouterr().out


def test_models_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MESHAG_CACHE_DIR", str(tmp_path))
    assert run("models", "list") == 0
    said = capsys.readouterr().out
    assert all(model.name in said for model in command.CATALOGUE)


_INSTANT = (
    "stt:instant=bench.instant:InstantStt,llm:instant=bench.instant:InstantLlm,tts:instant=bench.instant:InstantTts"
)
_CONNECTORS = {stage: {"primary": "instant"} for stage in ("stt", "llm", "tts")}


# -- doctor's screen, the demonstration's -----------------------------------------------------------------------------


@pytest.mark.parametrize("utf8", [True, False])
def test_the_doctors_screen_is_one_screen_and_keeps_what_is_bad(utf8: bool) -> None:
    findings = [
        Finding(f"Section {i // 25}", f"subject {i} ", "bad" if i % 10 == 9 else "note", "x" * 200, "y" * 200)
        for i in range(100)
    ]
    lines = doctor.screen(findings, colour=False, utf8=utf8)
    assert lines[0].startswith("MeshAG ")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for i in range(9, 100, 10):
        assert any(f"subject {i} " in line for line in lines), i
    assert lines[-1].startswith("10 things to mend")
    assert utf8 or "".join(lines).isascii()


def test_the_doctor_says_what_helps_a_model_of_ones_own_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHAG_LOCAL_MODELS", "/nowhere/own.gguf")
    for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    found = {item.detail.partition(":")[0]: item for item in doctor._configured(Settings()) if item.subject == "llm"}
    assert {item.state for item in found.values()} == {"bad"}
    assert "unset MESHAG_LOCAL_MODELS" in found["local"].fix
    assert found["openai"].fix == ""
    assert "OPENAI_API_KEY" in found["openai"].detail


def test_the_doctor_never_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    said = [finding.detail for finding in doctor._keys()]
    assert said[0] == "set: OPENAI_API_KEY"
    assert all(name in "".join(said) for name in doctor.KEYS)
    assert "sk-secret" not in "".join(said)


def test_an_interim_never_wraps_and_is_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    show = Show()
    show.interim("word " * 40 + "end")
    show.line("  YOU    hello")
    shown = capsys.readouterr().out
    row = shown.partition("\n")[0].split("\r\033[K")
    assert len(row[1].removeprefix("\033[2m").removesuffix("\033[0m")) < 50
    assert row[1].removesuffix("\033[0m").endswith("end")
    assert row[2] == "  YOU    hello"


def test_a_reply_is_not_broken_within_words_nor_run_into_by_other_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    show = Show()
    words = [
        "An",
        "answer",
        "of",
        "many",
        "words",
        "that",
        "is",
        "longer",
        "than",
        "one",
        "row",
        "of",
        "the",
        "terminal",
        "is.",
    ]
    for i, word in enumerate(words):
        show.piece(word if i == 0 else f" {word}", first=i == 0)
    show.line("  -- tts died and is started again --")
    lines = capsys.readouterr().out.splitlines()
    assert [word for line in lines[:-1] for word in line.split()] == ["AGENT", *words]
    assert max(map(len, lines)) < 50
    assert lines[-1] == "  -- tts died and is started again --"


def test_a_wait_is_shown_on_a_terminal_where_the_next_line_replaces_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Show().wait("speaking", 3.2)
    assert not capsys.readouterr().out  # into a file: nothing
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show = Show()
    show.wait("speaking", 3.2)
    show.line("done")
    assert "(speaking, 3 s)" in (shown := capsys.readouterr().out)
    assert shown.endswith("\r\033[Kdone\n")
    show.piece("An answer", first=True)
    show.wait("thinking", 1)
    assert capsys.readouterr().out.endswith("An answer")  # an answer that grows is not overwritten


def test_what_the_caller_waits_for() -> None:
    talk = Talk(None, Show())
    events: list[tuple[dict[str, object], str]] = [
        ({"type": "transcript", "final": False, "text": "Why", "provider": "p", "t_ms": 1}, ""),
        ({"type": "turn_ended", "turn": 1, "text": "Why?", "speech_end_ms": 1}, "thinking"),
        ({"type": "reply", "text": "Be", "t_ms": 2}, ""),
        ({"type": "speech_started", "t_ms": 3}, ""),
        ({"type": "reply", "text": "cause.", "t_ms": 4}, ""),
        ({"type": "reply_ended", "reason": "stop"}, "speaking"),
        ({"type": "speech_ended", "interrupted": False}, ""),
    ]
    for event, wanting in events:
        talk._on_event(event)
        assert talk.heard.wanting == wanting, event


@pytest.mark.parametrize(
    ("words", "again", "looking"),
    [
        ([], "demo --ask", "doctor "),
        (["--port-base", "9081"], "demo --port-base 9081 --ask", "doctor --port-base 9081 "),
        (["--url", "https://voice.example.com"], "demo --url https://voice.example.com --ask", "doctor "),
    ],
)
def test_what_to_try_next_means_the_same_mesh(
    words: list[str], again: str, looking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = cli.parser("demo").parse_args(["demo", *words])
    say_next(Show(), Path("answer.wav"), "demo", where(args))
    shown = capsys.readouterr().out
    assert again in shown
    assert looking in shown


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_import_meshag_is_cheap() -> None:
    code = (
        "import time; began = time.process_time(); import meshag; took = time.process_time() - began\n"
        "import sys; heavy = {'aiohttp', 'numpy', 'pydantic', 'nats', 'valkey'} & sys.modules.keys()\n"
        "print(took); print(sorted(heavy))"
    )
    said = [subprocess.check_output([sys.executable, "-c", code], text=True).splitlines() for _ in range(5)]
    assert statistics.median(float(took) for took, _ in said) < 0.3
    assert {heavy for _, heavy in said} == {"[]"}


def test_help_needs_none_of_the_heavy_imports() -> None:
    code = (
        "import sys\nfrom meshag import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'aiohttp', 'numpy', 'pydantic', 'nats', 'valkey'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    argv = [sys.executable, "-u", "-m", "meshag", "models", "list"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.stderr == ""
    assert ran.returncode == cli.BROKEN_PIPE
