"""The command line against real servers and real processes, as a person types it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshag.embedded.ports import free_port, is_free
from meshag.embedded.servers import EmbeddedServers
from meshes import ROOT, free_port_base

pytestmark = pytest.mark.integration

CONNECTED = {"MESHAG_CONNECTORS": instant.CONNECTORS, "PYTHONPATH": str(ROOT)}
ONE = "stt=1,llm=1,tts=1"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "VALKEY_URL")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def meshag(*words: str, stdin: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """`meshag …` to its end."""
    argv = [sys.executable, "-m", "meshag", *words]
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=False, timeout=90, env=environment(**env), cwd=cwd
    )


class Up:
    """`meshag up` in the background."""

    def __init__(self, out: Path, *words: str, cwd: Path | None = None, **env: str) -> None:
        self.out = out
        argv = [sys.executable, "-P", "-m", "meshag", "up", "--no-pull", *words]
        with out.open("w") as file:
            surroundings = environment(**{**CONNECTED, "TMPDIR": str(out.parent), **env})  # some are killed
            self.process = subprocess.Popen(argv, stdout=file, stderr=file, env=surroundings, cwd=cwd)

    def wait_for(self, text: str, limit_s: float = 60) -> str:
        deadline = time.monotonic() + limit_s
        while text not in (said := self.out.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        return said

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*words: str, cwd: Path | None = None, **env: str) -> Up:
        started.append(Up(tmp_path / f"up-{len(started)}.log", *words, cwd=cwd, **env))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def descendants(pid: int) -> set[int]:
    """Who lives below a process."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= more
    return found


def left_of(pids: set[int]) -> list[int]:
    """Which of them still run."""
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- session ----------------------------------------------------------------------------------------------------------


def test_a_session_is_created_listed_shown_and_ended(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text(json.dumps({"config": instant.config(), "session_name": "mine"}))
    made = meshag("session", "create", str(tmp_path / "agent.json"), "--url", mesh.url)
    assert made.returncode == 0, made.stderr
    session = json.loads(made.stdout)["session_id"]
    listed = meshag("session", "list", "--url", mesh.url, http_proxy="http://127.0.0.1:1")  # not for this machine
    assert [line for line in listed.stdout.splitlines() if session in line and line.endswith("mine")]
    shown = json.loads(meshag("session", "show", session, "--url", mesh.url).stdout)
    assert (shown["session_id"], shown["turns"]) == (session, [])
    ended = meshag("session", "end", session, "--url", mesh.url)
    assert (ended.returncode, ended.stdout) == (0, f"ended {session}\n")
    again = meshag("session", "show", session, "--url", mesh.url)
    assert again.returncode in (0, 1)
    if again.returncode == 0:
        assert json.loads(again.stdout)["status"] == "ended"


def test_a_refused_configuration_is_told_with_its_path_and_fix(mesh: Mesh) -> None:
    ran = meshag("session", "create", "-", "--url", mesh.url, stdin='{"config": {"flavour": 1}}')
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "config.flavour" in ran.stderr
    assert "fix:" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", ["nobody", "a b", "../x", "é", "a\nb"])
def test_an_unknown_session_is_one_clear_line(mesh: Mesh, name: str) -> None:
    ran = meshag("session", "show", name, "--url", mesh.url)
    assert ran.returncode == 1
    assert ran.stderr.startswith("meshag: ")
    assert "(404 session_not_found)" in ran.stderr


def test_without_a_mesh_the_line_says_how_to_start_one() -> None:
    ran = meshag("session", "list", "--url", f"http://127.0.0.1:{free_port()}")
    assert ran.returncode == 1
    assert "nothing answers at" in ran.stderr
    assert "meshag up" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_another_program_on_the_port_is_recognised(servers: EmbeddedServers) -> None:
    ran = meshag("session", "list", "--url", f"http://127.0.0.1:{servers.nats.port}")
    assert ran.returncode == 1
    assert "is not MeshAG" in ran.stderr


# -- doctor -----------------------------------------------------------------------------------------------------------


def looked(*words: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The doctor's exit status and findings, by subject."""
    ran = meshag("doctor", "--json", *words, **{**CONNECTED, **env})
    body = json.loads(ran.stdout)
    assert body["ok"] is (ran.returncode == 0)
    return ran.returncode, {finding["subject"]: finding for finding in body["findings"]}


def test_doctor_is_content_before_anything_runs(tmp_path: Path) -> None:
    base = str(free_port_base())
    status, found = looked("--port-base", base)
    assert status == 0, found
    assert found["mesh"]["state"] == "note"
    assert "`meshag up` starts its own" in found["NATS"]["detail"]
    ran = meshag("doctor", "--port-base", base, PYTHONIOENCODING="ascii", **CONNECTED)
    assert ran.stdout.isascii()
    assert len(ran.stdout.splitlines()) <= 40
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert "\033" not in ran.stdout


def test_doctor_looks_at_the_servers_that_are_named(servers: EmbeddedServers) -> None:
    base = str(free_port_base())
    status, found = looked("--port-base", base, NATS_URL=servers.nats_url, VALKEY_URL=servers.valkey_url)
    assert (status, found["NATS"]["state"], found["Valkey"]["state"]) == (0, "good", "good")
    assert "JetStream on" in found["NATS"]["detail"]
    assert servers.nats_url.split(":")[2].split("@")[0] not in json.dumps(found)
    gone = f"127.0.0.1:{free_port()}"
    status, found = looked("--port-base", base, NATS_URL=f"nats://u:word@{gone}", VALKEY_URL=f"valkey://:word@{gone}/0")
    assert (status, found["NATS"]["state"], found["Valkey"]["state"]) == (1, "bad", "bad")
    assert found["NATS"]["fix"]
    assert "word" not in json.dumps(found)


def test_doctor_says_that_a_valkey_may_lose_sessions(fresh_servers: EmbeddedServers) -> None:
    url, port = fresh_servers.valkey_url, fresh_servers.valkey.port
    password = url.split(":")[2].split("@")[0]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"AUTH {password}\r\nCONFIG SET appendonly no\r\n".encode())
        connection.recv(100)
        time.sleep(0.1)
    status, found = looked("--port-base", str(free_port_base()), NATS_URL=fresh_servers.nats_url, VALKEY_URL=url)
    assert (status, found["Valkey"]["state"]) == (1, "bad")
    assert "appendonly" in found["Valkey"]["detail"]


def test_doctor_finds_the_mesh_that_runs(mesh: Mesh) -> None:
    base = str(mesh.find("stt").port)
    status, found = looked("--port-base", base)
    assert (status, found["mesh"]["state"]) == (0, "good"), found
    assert "stt, llm, tts, transport" in found["mesh"]["detail"]


def test_doctor_names_who_holds_a_port() -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base + 1)):
        status, found = looked("--port-base", str(base))
    assert (status, found[f"port {base + 1}"]["state"]) == (1, "bad")
    assert f"pid {os.getpid()}" in found[f"port {base + 1}"]["detail"]
    assert "--port-base" in found[f"port {base + 1}"]["fix"]


# -- up ---------------------------------------------------------------------------------------------------------------


def test_up_names_the_taken_port_its_holder_and_the_setting(tmp_path: Path) -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base + 2)):
        ran = meshag("up", "--no-pull", "--port-base", str(base), **CONNECTED)
        assert ran.returncode == 1
        for word in (f"port {base + 2}", "tts", f"pid {os.getpid()}", "--port-base", "MESHAG_PORT_BASE"):
            assert word in ran.stderr
        suggested = int(ran.stderr.partition("--port-base ")[2].split(",")[0])
        assert all(is_free("127.0.0.1", suggested + i) for i in range(14))


@pytest.mark.parametrize("moment", ["Starting the mesh", "Stop it with Ctrl-C"])
def test_up_ended_by_sigterm_leaves_nothing(up: Callable[..., Up], moment: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    one = up("--port-base", str(free_port_base()), "--workers", ONE, TMPDIR=str(tmp_path / "tmp"))
    one.wait_for(moment)
    while not (children := descendants(one.process.pid)):
        time.sleep(0.01)
    assert one.end(signal.SIGTERM) == 0, one.out.read_text()
    assert "Traceback" not in one.out.read_text()
    assert children
    assert left_of(children) == []
    assert list((tmp_path / "tmp").iterdir()) == []  # nor a trace of onnxruntime's telemetry


def test_ctrl_c_while_it_starts_is_130_and_leaves_nothing(up: Callable[..., Up]) -> None:
    one = up("--port-base", str(free_port_base()), "--workers", ONE)
    one.wait_for("Starting the mesh")
    while not (children := descendants(one.process.pid)):
        time.sleep(0.01)
    time.sleep(0.4)
    children = descendants(one.process.pid)
    assert one.end(signal.SIGINT) == 130
    assert "Traceback" not in one.out.read_text()
    assert children
    assert left_of(children) == []


def test_two_meshes_at_once_and_a_directory_full_of_traps(up: Callable[..., Up], tmp_path: Path) -> None:
    for name in ("inspect.py", "secrets.py", "numpy.py", "aiohttp.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user was imported')\n")
    first_base = free_port_base()
    first = up("--port-base", str(first_base), "--workers", ONE, cwd=tmp_path)
    first.wait_for("Starting the mesh")
    second_base = first_base + 100
    second = up("--port-base", str(second_base), "--workers", ONE, cwd=tmp_path)
    for one, base in ((first, first_base), (second, second_base)):
        said = one.wait_for("Stop it with Ctrl-C")
        assert f"http://localhost:{base + 3}" in said
        assert "llm answers  instant" in said
        assert "docs/models.md" in said
        listed = meshag("session", "list", "--port-base", str(base))
        assert (listed.returncode, listed.stdout) == (0, ""), listed.stderr
    made = meshag("session", "create", "-", "--port-base", str(second_base), stdin=json.dumps(instant_request()))
    assert made.returncode == 0, made.stderr
    assert meshag("session", "list", "--port-base", str(first_base)).stdout == ""
    assert first.end(signal.SIGINT) == 0
    assert second.end(signal.SIGTERM) == 0


def instant_request() -> dict[str, Any]:
    return {"config": instant.config()}


def test_a_demonstration_survives_nothing_less_than_the_mesh(up: Callable[..., Up], tmp_path: Path) -> None:
    """The mesh dies in the middle: one clear line, status 1."""
    base = free_port_base()
    one = up("--port-base", str(base), "--workers", ONE)
    one.wait_for("Stop it with Ctrl-C")
    (tmp_path / "agent.json").write_text(json.dumps(instant_request()))
    argv = [sys.executable, "-m", "meshag", "demo", "--port-base", str(base), "--config", str(tmp_path / "agent.json")]
    argv += ["--out", str(tmp_path / "answer.wav")]
    demo = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert demo.stdout is not None
    while "recorded speech" not in demo.stdout.readline():
        assert demo.poll() is None
    time.sleep(0.5)
    one.process.kill()
    one.process.wait()
    _, said = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert said.startswith("meshag: the call broke off")
    assert "Traceback" not in said


def test_who_started_the_servers_is_told_where_they_are_and_nobody_else(mesh: Mesh):
    path = mesh.tell_servers()
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    line = f". {shlex.quote(str(path))} && exec {shlex.quote(sys.executable)} -m meshag key list"
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=30, env=clean)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
