"""What strangers try at the door of a mesh that wants keys; and bodies, on every route that takes one."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bench import instant
from meshag.api.serve import routes
from meshag.embedded.mesh import Mesh
from meshag.ids import api_key as written
from meshag.ids import new_api_key
from meshag.sessions.keys import Keys
from meshag.sessions.store import SessionStore
from meshes import call, create, start_mesh
from standins import exchange, stored, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.security

MAKE = "/sessions/with-config"


@pytest.fixture
async def admin(closed_mesh: Mesh) -> str:
    """A key for everything."""
    assert closed_mesh.servers is not None
    store = await SessionStore.connect(closed_mesh.servers.valkey_url)
    keys: Keys = store.keys
    _, text = await keys.create("test", "admin", session_quota=0, rate_per_s=0)
    await store.aclose()
    return text


@pytest.fixture(scope="module")
def closed_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that wants keys."""
    workers = {"stt": 1, "llm": 1, "tts": 1}
    mesh = start_mesh(tmp_path_factory.mktemp("mesh"), workers=workers, MESHAG_ACCESS="keys")
    yield mesh
    mesh.stop()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "a" * 7_000},
        {"Authorization": "Bearer mesh_" + "*" * 13 + "_" + "*" * 52},
        {"Authorization": "Bearer \xff\xfe"},
        {"X-API-Key": "\t"},
        {"X-API-Key": "' OR 1=1 --"},
        {"Cookie": "api_key=x"},
    ],
    ids=range(7),
)
def test_what_is_no_key_opens_nothing(closed_mesh: Mesh, headers: dict[str, str]) -> None:
    status, answered, body = exchange(closed_mesh, "GET", "/sessions", headers=headers)
    assert (status, answered["Content-Type"].partition(";")[0]) in ((401, "application/problem+json"),)
    assert all(len(value) < 8 or value not in json.dumps(body) for value in headers.values())


def test_a_key_in_an_address_opens_nothing(closed_mesh: Mesh, admin: str) -> None:
    for query in (f"key={admin}", f"api_key={admin}", f"token={admin}", f"access_token={admin}"):
        status, _, body = exchange(closed_mesh, "GET", f"/sessions?{query}")
        assert (status, body["code"]) == (401, "key_missing")
        assert admin not in json.dumps(body)


def test_a_key_stands_in_no_log_and_not_in_valkey(closed_mesh: Mesh, admin: str) -> None:
    secret = admin[-52:]
    offered = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": f"meshag.key.{admin}",
    }
    made = exchange(closed_mesh, "POST", MAKE, {"config": instant.config()}, bearer(admin))[2]
    stream = f"/sessions/{made['session_id']}/stream"
    for path, headers in [
        (f"{stream}?token={made['token']}", offered),  # nobody there speaks what is offered: the server warns
        (f"{stream}?token={admin}", offered),
        (f"/sessions/{admin}", bearer(admin)),
        (f"/{admin}", bearer(admin)),
        (f"/sessions?limit={admin}", bearer(admin)),
        ("/sessions", {"Authorization": f"Basic {admin}"}),
        ("/sessions", {"X-Request-ID": admin, **bearer(admin)}),
    ]:
        try:
            _, answered, body = exchange(closed_mesh, "GET", path, headers=headers)
        except ConnectionError:
            continue
        assert secret not in json.dumps(body, default=repr)
        assert secret not in str(answered.get("Sec-WebSocket-Protocol"))
    exchange(closed_mesh, "DELETE", f"/sessions/{made['session_id']}", headers=bearer(admin))
    assert closed_mesh.servers is not None
    logs = [*closed_mesh.log_dir.glob("*.log"), closed_mesh.servers.nats.log_path, closed_mesh.servers.valkey.log_path]
    logs += [path for path in closed_mesh.servers.data_dir.rglob("*") if path.is_file()]
    assert len(logs) > 6
    text = b"".join(path.read_bytes() for path in logs)
    assert b"worker_ready" in text
    assert admin[5:18].encode() in text  # its id is what one greps for
    assert secret.encode() not in text
    with stored(closed_mesh) as valkey:
        assert all(secret not in str(valkey.hgetall(name)) for name in valkey.scan_iter("apikey:*", _type="HASH"))


def test_guessing_is_slowed_down_and_the_neighbours_are_not(closed_mesh: Mesh, admin: str) -> None:
    """Last of those on this mesh: from here it takes no key any more that it has not seen."""
    assert exchange(closed_mesh, "GET", "/sessions", headers=bearer(admin))[0] == 200
    answers = [exchange(closed_mesh, "GET", "/sessions", headers=bearer(written(*new_api_key()))) for _ in range(12)]
    assert {status for status, _, _ in answers} <= {401, 429}
    status, headers, body = answers[-1]
    assert (status, body["code"]) == (429, "too_many_failures")
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert exchange(closed_mesh, "GET", "/sessions", headers=bearer(admin))[0] == 200
    almost = admin[:-1] + ("a" if admin[-1] != "a" else "b")
    assert exchange(closed_mesh, "GET", "/sessions", headers=bearer(almost))[0] == 429


# -- bodies -----------------------------------------------------------------------------------------------------------

EXACT = {
    ("POST", "/sessions/with-config"),
    ("PATCH", "/sessions/{id}/config"),
    ("POST", "/sessions/{id}/extend"),
    ("PUT", "/providers/{stage}/{name}"),
}
"""Routes whose body is the first thing they look at."""

BODILESS = {("POST", "/sessions/{id}/token"), ("POST", "/sessions/{id}/interrupt")}
"""Routes that read none."""

DEEP = b'{"config": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
LONG = b'{"session_name": "' + b"a" * 70_000 + b'"}'


def taking_bodies() -> list[tuple[str, str]]:
    return sorted({(r.method, r.path) for r in routes() if r.method in ("POST", "PUT", "PATCH")} - BODILESS)


def test_the_routes_that_are_known_to_take_a_body_are_there() -> None:
    assert set(taking_bodies()) >= EXACT


@pytest.mark.parametrize(("method", "path"), taking_bodies())
def test_every_body_is_bounded_in_size_and_depth(mesh: Mesh, method: str, path: str) -> None:
    session = create(mesh)["session_id"]
    place = path.replace("{id}", session).replace("{stage}", "llm").replace("{name}", "instant")
    place = re.sub("{[^}]*}", "x", place)

    def sent(body: bytes) -> tuple[int, Any]:
        status, _, found = exchange(mesh, method, place, body)
        return status, found.get("code")

    early = sent(b"{}")  # a route may refuse before it reads: a room that is not there
    before_reading = {early} if early[0] >= 400 and (method, path) not in EXACT else set()
    assert sent(DEEP) in {(422, "body_too_deep"), *before_reading}
    assert sent(LONG) in {(413, "body_too_large"), *before_reading}
    assert call(mesh, "GET", f"/sessions/{session}")[0] == 200
