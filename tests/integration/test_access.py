"""A mesh that wants API keys: whose sessions one sees, how many one may have, how often one may ask."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from bench import instant
from meshag.api import access
from meshag.api.serve import routes
from meshag.api.service import service
from meshag.commands.key import first_key
from meshag.embedded.mesh import Mesh
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import AuthError, LimitError
from meshag.ids import new_api_key, new_session_id, parse_api_key
from meshag.sessions import keys as keys_module
from meshag.sessions.config import SessionRequest
from meshag.sessions.keys import Keys, Scope
from meshag.sessions.store import SessionStore
from meshag.settings import Settings
from meshes import ask, join, start_mesh
from standins import eventually, exchange, stored

pytestmark = pytest.mark.integration

T = TypeVar("T")

MAKE = "/sessions/with-config"


@pytest.fixture(scope="module")
def closed_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that wants keys."""
    mesh = start_mesh(
        tmp_path_factory.mktemp("mesh"),
        workers={"stt": 1, "llm": 1, "tts": 1},
        MESHAG_ACCESS="keys",
        MESHAG_CORS_ORIGINS="https://app.example.com",
    )
    yield mesh
    mesh.stop()


def with_keys(mesh: Mesh, work: Callable[[Keys], Awaitable[T]]) -> T:
    async def run() -> T:
        assert mesh.servers is not None
        store = await SessionStore.connect(mesh.servers.valkey_url)
        try:
            return await work(store.keys)
        finally:
            await store.aclose()

    return asyncio.run(run())


def make_key(mesh: Mesh, scope: Scope = "write", *, quota: int = 0, rate: int = 0) -> str:
    made = with_keys(mesh, lambda keys: keys.create("test", scope, session_quota=quota, rate_per_s=rate))
    return made[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def create(mesh: Mesh, key: str) -> tuple[int, Any, Any]:
    return exchange(mesh, "POST", MAKE, {"config": instant.config()}, bearer(key))


# -- who may ----------------------------------------------------------------------------------------------------------


def test_without_a_key_only_what_is_everybody_s_answers(closed_mesh: Mesh) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/static/meshag.js"):
        assert exchange(closed_mesh, "GET", path)[0] == 200, path
    session = new_session_id()
    for method, path in [
        ("POST", MAKE),
        ("GET", "/sessions"),
        ("GET", f"/sessions/{session}"),
        ("DELETE", f"/sessions/{session}"),
        ("PUT", "/providers/llm/instant"),
    ]:
        status, headers, body = exchange(closed_mesh, method, path, b"{}")
        assert (status, body["code"]) == (401, "key_missing"), path
        assert headers["WWW-Authenticate"] == 'Bearer realm="meshag"'
        assert body["request_id"] == headers["X-Request-ID"]


def test_a_wrong_key_is_refused_in_the_same_words_whatever_is_wrong(closed_mesh: Mesh) -> None:
    good = make_key(closed_mesh)
    stranger = make_key(closed_mesh)
    said = set()
    for wrong in (
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        good[:18] + stranger[18:],
        "mesh_" + "a" * 13 + "_" + "a" * 52,
        good.upper(),
        "x",
    ):
        status, _, body = exchange(closed_mesh, "GET", "/sessions", headers=bearer(wrong))
        assert status == 401
        assert wrong not in json.dumps(body)
        said.add((body["code"], body["title"]))
    assert len(said) == 1
    assert exchange(closed_mesh, "GET", "/sessions", headers={"X-API-Key": good})[0] == 200


def test_a_scope_that_does_not_suffice_is_told_which_would(closed_mesh: Mesh) -> None:
    reader, writer = make_key(closed_mesh, "read"), make_key(closed_mesh)
    status, headers, body = create(closed_mesh, reader)
    assert (status, body["code"], body["scope"]) == (403, "scope_missing", "write")
    assert 'scope="write"' in headers["WWW-Authenticate"]
    path = "/providers/llm/instant"
    status, _, body = exchange(closed_mesh, "PUT", path, {"state": "on"}, bearer(writer))
    assert (status, body["scope"]) == (403, "admin")
    assert exchange(closed_mesh, "GET", "/providers", headers=bearer(reader))[0] == 200


def test_a_session_that_is_another_key_s_is_not_there(closed_mesh: Mesh) -> None:
    mine, other, admin = make_key(closed_mesh), make_key(closed_mesh), make_key(closed_mesh, "admin")
    session = create(closed_mesh, mine)[2]["session_id"]
    unknown = new_session_id()
    everything = [
        (route.method, re.sub(r"{(?!id)[^}]*}", "x", route.path))
        for route in routes()
        if "{id}" in route.path and access.rule_of(route.handler) in ("read", "write", "admin")
    ]
    assert len(everything) >= 6
    for method, path in everything:
        answers = [
            exchange(closed_mesh, method, path.replace("{id}", one), b"{}", bearer(other)) for one in (session, unknown)
        ]
        for status, _, body in answers:
            assert (status, body["code"]) == (404, "session_not_found"), (method, path)
        assert answers[0][2]["title"] == answers[1][2]["title"].replace(unknown, session)
    assert exchange(closed_mesh, "GET", f"/sessions/{session}", headers=bearer(mine))[0] == 200
    assert exchange(closed_mesh, "GET", f"/sessions/{session}", headers=bearer(admin))[0] == 200

    def seen(key: str) -> set[str]:
        listed = exchange(closed_mesh, "GET", "/sessions?limit=1000", headers=bearer(key))[2]["sessions"]
        return {entry["session_id"] for entry in listed}

    assert seen(mine) == {session}
    assert seen(other) == set()
    assert session in seen(admin)
    for _ in range(2):  # to end it again is no error
        assert exchange(closed_mesh, "DELETE", f"/sessions/{session}", headers=bearer(mine))[0] == 204
    assert exchange(closed_mesh, "DELETE", f"/sessions/{session}", headers=bearer(other))[0] == 404
    assert seen(mine) == set()


async def test_a_caller_needs_the_session_s_token_and_no_key(closed_mesh: Mesh) -> None:
    key = await asyncio.to_thread(make_key, closed_mesh)
    made = (await asyncio.to_thread(create, closed_mesh, key))[2]
    async with join(made) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
    path = f"/sessions/{made['session_id']}/stream?token=x"
    assert (await asyncio.to_thread(exchange, closed_mesh, "GET", path, None, bearer(key)))[0] == 401


# -- how much ---------------------------------------------------------------------------------------------------------


def test_a_key_has_so_many_sessions_and_no_more(closed_mesh: Mesh) -> None:
    key = make_key(closed_mesh, quota=2)
    first, _ = create(closed_mesh, key)[2]["session_id"], create(closed_mesh, key)
    status, headers, body = create(closed_mesh, key)
    assert (status, body["code"]) == (429, "quota_exceeded")
    assert int(headers["Retry-After"]) > 0
    assert exchange(closed_mesh, "DELETE", f"/sessions/{first}", headers=bearer(key))[0] == 204
    assert create(closed_mesh, key)[0] == 201
    with stored(closed_mesh) as valkey:  # one expires
        valkey.delete(*valkey.keys(f"session:{valkey.zrange(f'sessions:{key[5:18]}', 0, 0)[0]}:*"))
    assert create(closed_mesh, key)[0] == 201
    assert create(closed_mesh, key)[0] == 429


def test_a_key_may_ask_so_often(closed_mesh: Mesh) -> None:
    key, other = make_key(closed_mesh, rate=5), make_key(closed_mesh, rate=5)
    answers = [exchange(closed_mesh, "GET", "/providers", headers=bearer(key)) for _ in range(40)]
    late = [answer for answer in answers if answer[0] == 429]
    assert [status for status, _, _ in answers[:5]] == [200] * 5
    assert late
    assert late[0][2]["code"] == "rate_limited"
    assert late[0][1]["Retry-After"] == "1"
    assert exchange(closed_mesh, "GET", "/providers", headers=bearer(other))[0] == 200


# -- on Valkey itself -------------------------------------------------------------------------------------------------


async def quota(store: SessionStore, key: str, most: int) -> bool:
    try:
        await store.create(new_session_id(), SessionRequest(), 100, key, most)
    except LimitError:
        return False
    return True


async def test_a_quota_holds_for_all_who_create_at_once(servers: EmbeddedServers) -> None:
    stores = [await SessionStore.connect(servers.valkey_url) for _ in range(4)]
    key = new_api_key()[0]
    made = await asyncio.gather(*(quota(store, key, 7) for store in stores for _ in range(10)))
    assert sum(made) == 7
    assert len((await stores[0].page(limit=100, key=key)).ids) == 7
    for store in stores:
        await store.aclose()


async def test_what_has_expired_is_forgotten_by_what_comes_after(servers: EmbeddedServers) -> None:
    store = await SessionStore.connect(servers.valkey_url)
    key = new_api_key()[0]
    for _ in range(60):
        session = new_session_id()
        await store.create(session, SessionRequest(), 100, key)
        await store._client.delete(f"session:{session}:config", f"session:{session}:state")
    assert await store._client.zcard(f"sessions:{key}") < 20
    await store.aclose()


async def test_a_rate_holds_for_the_whole_fleet(servers: EmbeddedServers) -> None:
    stores = [await SessionStore.connect(servers.valkey_url) for _ in range(2)]
    key, _ = await stores[0].keys.create("x", "read", session_quota=0, rate_per_s=10)
    waits = [await stores[i % 2].keys.wait_s(key) for i in range(60)]
    assert waits[:10] == [0] * 10
    assert 0 < max(waits) <= 0.1
    assert sum(wait == 0 for wait in waits) < 60
    for store in stores:
        await store.aclose()


async def test_a_key_that_is_known_outlives_valkey_and_one_that_is_not_is_no_wrong_one(
    fresh_servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SessionStore.connect(fresh_servers.valkey_url)
    known, text = await store.keys.create("x", "admin", session_quota=0, rate_per_s=3)
    _, unknown = await store.keys.create("y", "admin", session_quota=0, rate_per_s=3)
    worker = cast("Any", SimpleNamespace(settings=Settings(), store=store))
    app = web.Application(middlewares=service(worker).middlewares)

    @access.admin
    async def whose(request: web.Request) -> web.Response:
        return web.Response(text=access.key_of(request))

    app.add_routes([web.get("/whose", whose)])
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/whose", headers=bearer(text))).text() == known.id
        fresh_servers.kill_valkey()
        monkeypatch.setattr(keys_module, "CACHE_S", 0)
        answers = [await client.get("/whose", headers=bearer(text)) for _ in range(20)]
        assert [answer.status for answer in answers[:3]] == [200] * 3
        assert 429 in {answer.status for answer in answers}  # counted here meanwhile
        assert (await client.get("/whose", headers=bearer(unknown))).status == 503
        monkeypatch.setattr(keys_module, "STALE_S", 0)
        assert (await client.get("/whose", headers=bearer(text))).status == 503
    await store.aclose()


async def test_a_revoked_key_is_taken_no_longer_than_it_is_cached(
    servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, service_ = [await SessionStore.connect(servers.valkey_url) for _ in range(2)]
    made, text = await operator.keys.create("x", "read", session_quota=0, rate_per_s=0)
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr("meshag.clock.monotonic_s", lambda: now.s)
    assert (await service_.keys.verify(text)).id == made.id
    assert await operator.keys.revoke(made.id)
    assert not await operator.keys.revoke(made.id)
    assert (await service_.keys.verify(text)).id == made.id
    now.s += keys_module.CACHE_S
    with pytest.raises(AuthError):
        await service_.keys.verify(text)
    assert made.id not in {key.id for key in await operator.keys.all()}
    for store in (operator, service_):
        await store.aclose()


async def test_only_the_secret_s_digest_is_stored(servers: EmbeddedServers) -> None:
    store = await SessionStore.connect(servers.valkey_url)
    made, text = await store.keys.create("x", "read", session_quota=0, rate_per_s=0)
    parsed = parse_api_key(text)
    assert parsed is not None
    secret = parsed[1]
    fields = await store._client.hgetall(f"apikey:{made.id}")
    assert fields.keys() == {"name", "digest", "scope", "session_quota", "rate_per_s", "created_at_s"}
    assert secret not in str(fields)
    await store._client.hset(f"apikey:{made.id}", "scope", "everything")  # not one that we wrote
    with pytest.raises(AuthError):
        await store.keys.verify(text)
    await store.aclose()


# -- requests and pages -----------------------------------------------------------------------------------------------


def test_a_request_keeps_its_id_to_the_log(closed_mesh: Mesh) -> None:
    _, headers, _ = exchange(closed_mesh, "GET", "/health", headers={"X-Request-ID": "Abc.1_2-3"})
    assert headers["X-Request-ID"] == "Abc.1_2-3"
    ids = set()
    for wrong in ("", "a b", "a" * 65, "é", 'x"y', "<script>"):
        _, headers, _ = exchange(closed_mesh, "GET", "/health", headers={"X-Request-ID": wrong})
        assert headers["X-Request-ID"] != wrong
        ids.add(headers["X-Request-ID"])
    assert len(ids) == 6
    key = make_key(closed_mesh)
    sent = {**bearer(key), "X-Request-ID": "find-me-again"}
    assert exchange(closed_mesh, "POST", MAKE, {"config": instant.config()}, sent)[0] == 201
    lines = [json.loads(line) for line in (closed_mesh.log_dir / "transport.log").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "find-me-again"][:1]
    assert (line["event"], line["key"]) == ("session_created", key[5:18])


def test_pages_of_a_listed_site_and_no_others(closed_mesh: Mesh) -> None:
    key = make_key(closed_mesh)
    ours, theirs = "https://app.example.com", "https://app.example.com.evil.example"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = exchange(closed_mesh, "OPTIONS", MAKE, headers={"Origin": ours, **asked})
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == ours
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
    status, headers, _ = exchange(closed_mesh, "GET", "/sessions", headers={"Origin": ours, **bearer(key)})
    assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, ours, "Origin")
    assert "Access-Control-Allow-Credentials" not in headers
    status, headers, _ = exchange(closed_mesh, "GET", "/sessions", headers={"Origin": ours})
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, ours)  # a page may read why
    for origin in (theirs, "http://app.example.com", "https://app.example.com:444", ours.upper(), "null"):
        for method, more in (("OPTIONS", asked), ("GET", bearer(key))):
            status, headers, _ = exchange(closed_mesh, method, "/sessions", headers={"Origin": origin, **more})
            assert status == 403, origin
            assert "Access-Control-Allow-Origin" not in headers


# -- the command line -------------------------------------------------------------------------------------------------


def meshag(mesh: Mesh, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    assert mesh.servers is not None
    surroundings = {**os.environ, "VALKEY_URL": mesh.servers.valkey_url, **env}
    argv = [sys.executable, "-m", "meshag", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=surroundings)


def test_keys_on_the_command_line(closed_mesh: Mesh) -> None:
    made = meshag(closed_mesh, "key", "create", "--name", "website", "--scope", "read", "--quota", "3")
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    parsed = parse_api_key(text)
    assert parsed is not None
    key, secret = parsed
    assert secret not in made.stderr
    listed = meshag(closed_mesh, "key", "list").stdout
    (line,) = [line for line in listed.splitlines() if line.startswith(key)]
    assert "read" in line
    assert "website" in line
    assert secret not in listed
    ran = meshag(closed_mesh, "session", "list", "--url", closed_mesh.url, MESHAG_API_KEY=text)
    assert ran.returncode == 0, ran.stderr
    assert meshag(closed_mesh, "key", "revoke", key).returncode == 0


def test_a_mesh_that_only_up_can_reach_is_given_its_first_key(
    fresh_servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VALKEY_URL", raising=False)
    mesh = cast("Any", SimpleNamespace(servers=fresh_servers))
    assert first_key(mesh) == ""  # none is wanted
    monkeypatch.setenv("MESHAG_HOST", "0.0.0.0")
    text = first_key(mesh)

    async def scope() -> str:
        store = await SessionStore.connect(fresh_servers.valkey_url)
        try:
            return (await store.keys.verify(text)).scope
        finally:
            await store.aclose()

    assert asyncio.run(scope()) == "admin"
    assert first_key(mesh) == ""  # there is one


async def test_a_service_that_wants_keys_says_at_its_start_how_to_make_one(closed_mesh: Mesh) -> None:
    log = (closed_mesh.log_dir / "transport.log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if "no_api_key" in line]
    assert len(lines) == 1
    assert "meshag key create" in lines[0]["fix"]
    assert await eventually("it is ready", lambda: closed_mesh.is_ready(closed_mesh.find("transport")))
