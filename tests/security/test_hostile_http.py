"""Whatever is sent over HTTP: a 4xx that says why, soon, as problem+json. Never a 500, never another's session."""

import base64
import contextlib
import gzip
import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
import pytest

from bench import instant
from meshag import errors
from meshag.api.problems import problem_of
from meshag.embedded.mesh import Mesh
from meshag.ids import new_session_id
from meshes import call, create
from standins import exchange, stored, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.security

MAKE = "/sessions/with-config"
TEN_MB = 10_000_000


def is_problem(headers: http.client.HTTPMessage, body: Any, status: int) -> bool:
    return (
        headers["Content-Type"].startswith("application/problem+json")
        and body["status"] == status
        and body["type"] == f"urn:meshag:{body['code']}"
        and bool(body["title"])
    )


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body_not_json"),
        (b"\x00\xff", 400, "body_not_json"),
        (b"config=1", 400, "body_not_json"),
        (b"[]", 422, "body_not_object"),
        (b"[" * 60_000, 422, "body_too_deep"),
        (b'{"config": {"turns": {"vad": "silero", "vad": "provider"}}}', 422, "duplicate_key"),
        (b'{"config": {"system_prompt": "\\ud800"}}', 422, "text_invalid"),
        (b'{"config": {"system_prompt": "\\u0000"}}', 422, "text_invalid"),
        (b'{"ttl_s": 1e999}', 422, "number_out_of_range"),
        (b'{"session_name": "' + b"a" * 66_000 + b'"}', 413, "body_too_large"),
        (b'{"session_name": "' + b"a" * TEN_MB + b'"}', 413, "body_too_large"),
    ],
    ids=range(11),
)
def test_bodies(mesh: Mesh, body: bytes, status: int, code: str) -> None:
    session = create(mesh)["session_id"]
    targets = [("POST", MAKE), ("PATCH", f"/sessions/{session}/config"), ("POST", f"/sessions/{session}/extend")]
    for method, path in targets:
        try:
            answered, headers, found = exchange(mesh, method, path, body)
        except ConnectionError:
            assert len(body) == TEN_MB + 20  # refused in the middle of it: the answer may be lost with the rest
            continue
        assert (answered, found["code"]) == (status, code), path
        assert is_problem(headers, found, status)


def test_a_body_that_is_not_what_its_headers_say(mesh: Mesh) -> None:
    good = json.dumps({"config": instant.config()}).encode()
    bomb = gzip.compress(b'{"session_name": "' + b"a" * 5_000_000 + b'"}')
    for body, coding, status in [
        (gzip.compress(good), "gzip", 201),
        (b"no gzip at all", "gzip", 400),
        (gzip.compress(good)[:-9], "gzip", 400),
        (bomb, "gzip", 413),
        (good, "deflate", 400),
    ]:
        answered, headers, found = exchange(mesh, "POST", MAKE, body, {"Content-Encoding": coding})
        assert answered == status, (coding, found)
        assert status == 201 or is_problem(headers, found, status)


def test_a_body_that_breaks_off(mesh: Mesh) -> None:
    address = urlsplit(mesh.url)
    for head, rest in [
        (b"Content-Length: 500", b'{"config"'),
        (b"Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
        (b"Content-Length: 2\r\nContent-Length: 3", b"{}"),
        (b"Content-Length: -1", b"{}"),
    ]:
        with socket.create_connection((address.hostname, address.port), timeout=10) as raw:
            raw.sendall(b"POST %s HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n" % (MAKE.encode(), address.netloc.encode(), head))
            with contextlib.suppress(OSError):  # it may have refused the head already, and hung up
                raw.sendall(rest)
                raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(65_536)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer  # to who is gone, nobody answers
    assert call(mesh, "GET", "/health")[0] == 200


# -- ids --------------------------------------------------------------------------------------------------------------

IDS = [
    "*",
    ">",
    "*" * 26,
    "a" * 25,
    "a" * 27,
    "a" * 13 + "." + "a" * 12,
    "a" * 26 + "\n",
    "a" * 26 + "\r\nX: y",
    "\x00" * 26,
    "a" * 26 + "\x00",
    "A" * 26,
    "ä" * 26,
    "ａ" * 26,
    "٣" * 26,
    "..",
    "../" * 5 + "health",
    "$JS.API.STREAM.PURGE",
    "a" * 8_000,
    "a" * 100_000,
    "%",
    " ",
    "\ud800",
]


@pytest.mark.parametrize("text", IDS, ids=range(len(IDS)))
def test_ids(mesh: Mesh, text: str) -> None:
    coded = quote(text.encode("utf-8", "surrogatepass"), safe="")
    for method, tail in [
        ("GET", ""),
        ("PATCH", "/config"),
        ("POST", "/extend"),
        ("POST", "/token"),
        ("GET", "/history"),
        ("GET", "/stream?token=x"),
        ("DELETE", ""),
    ]:
        try:
            status, headers, body = exchange(mesh, method, f"/sessions/{coded}{tail}", b"{}")
        except ConnectionError:
            assert len(text) > 8_000  # a request line that long is refused while it is being sent
            continue
        assert status in (400, 404, 405), (status, body)
        if len(text) < 8_000:
            assert is_problem(headers, body, status)
            assert status == 404


def test_one_session_cannot_be_reached_by_the_names_of_all(mesh: Mesh) -> None:
    created = create(mesh)
    for text in ("*", ">", "%2A", "%3E", "*.*"):
        status, _, _ = exchange(mesh, "DELETE", f"/sessions/{text}")
        assert status == 404
    assert call(mesh, "GET", f"/sessions/{created['session_id']}")[0] == 200


# -- methods and routes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("GET", "/sessions/", 404),
        ("GET", "//", 404),
        ("GET", "/static/../../etc/passwd", 404),
        ("GET", "/static/%2e%2e%2fapi%2fpage.py", 404),
        ("GET", MAKE, 404),  # reads as a session called with-config
        ("PUT", MAKE, 405),
        ("DELETE", "/sessions", 405),
        ("POST", "/health", 405),
        ("PROPFIND", "/health", 405),
        ("OPTIONS", "/sessions", 405),
        ("TRACE", "/sessions", 405),
    ],
)
def test_methods_and_routes_that_do_not_exist(mesh: Mesh, method: str, path: str, status: int) -> None:
    answered, headers, body = exchange(mesh, method, path)
    assert answered == status
    assert is_problem(headers, body, status)
    if status == 405:
        assert headers["Allow"]


# -- other sites' pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8084", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", "]", "a@b", ""],
)
def test_foreign_hosts_are_refused(mesh: Mesh, host: str) -> None:
    for path in ("/", "/sessions", "/health", "/metrics", "/ready"):
        status, _, body = exchange(mesh, "GET", path, headers={"Host": host})
        assert status in (400, 403), (path, body)
    for name in ("localhost", "127.0.0.1", "[::1]"):
        port = urlsplit(mesh.url).port
        assert exchange(mesh, "GET", "/health", headers={"Host": f"{name}:{port}"})[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://localhost.evil.example",
        "null",
        "",
        "file://",
        "http://[::1",
        "http://localhost:1",
        "http://localhost@evil.example",
        "chrome-extension://abcdef",
    ],
)
def test_pages_of_other_sites_are_refused(mesh: Mesh, origin: str) -> None:
    created = create(mesh)
    for method, path in [
        ("POST", MAKE),
        ("GET", "/sessions"),
        ("DELETE", f"/sessions/{created['session_id']}"),
        ("GET", f"/sessions/{created['session_id']}/stream?token={created['token']}"),
    ]:
        status, headers, body = exchange(mesh, method, path, b"{}", {"Origin": origin})
        assert (status, body["code"]) == (403, "origin_refused"), path
        assert is_problem(headers, body, 403)
        assert "Access-Control-Allow-Origin" not in headers
    assert exchange(mesh, "GET", "/sessions", headers={"Origin": mesh.url})[0] == 200
    assert call(mesh, "GET", f"/sessions/{created['session_id']}")[0] == 200


# -- tokens -----------------------------------------------------------------------------------------------------------


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def tokens_to_refuse(mesh: Mesh, session: str, other: str) -> dict[str, str]:
    with stored(mesh) as kept:
        secret = str(kept.get("meshag:token_secret"))
    now = int(time.time())
    claims = {"sub": session, "aud": "meshag-caller", "iat": now, "exp": now + 300}

    def signed(key: str = secret, algorithm: str = "HS256", **more: Any) -> str:
        return jwt.encode({k: v for k, v in {**claims, **more}.items() if v is not None}, key, algorithm)

    assert exchange(mesh, "GET", f"/sessions/{session}/stream?token={signed()}")[0] == 400  # good, but no WebSocket
    forged = part({**claims, "exp": now + 10**6})
    head, _, tail = signed().split(".")
    return {
        "missing": "",
        "garbage": "garbage",
        "dots": "...",
        "unicode": quote("ä.ö.ü"),
        "nul": "%00",
        "long": "a." * 3_000,
        "expired": signed(iat=now - 600, exp=now - 300),
        "of another session": signed(sub=other),
        "of all": signed(sub="*"),
        "of nobody": signed(sub=None),
        "for another use": signed(aud="somebody"),
        "for no use": signed(aud=None),
        "endless": signed(exp=None),
        "not yet": signed(iat=now + 3600, nbf=now + 3600),
        "another key": signed("x" * 64),
        "another algorithm": signed(secret * 2, "HS512"),
        "alg none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.",
        "alg none, signed": f"{part({'alg': 'none'})}.{part(claims)}.{tail}",
        "changed": f"{head}.{forged}.{tail}",
        "deep": f"{head}.{base64.urlsafe_b64encode(b'[' * 3_000).decode().rstrip('=')}.{tail}",
    }


def test_tokens(mesh: Mesh) -> None:
    session, other = create(mesh)["session_id"], create(mesh)["session_id"]
    for what, token in tokens_to_refuse(mesh, session, other).items():
        status, headers, body = exchange(mesh, "GET", f"/sessions/{session}/stream?token={token}")
        assert status == 401, (what, status, body)
        assert is_problem(headers, body, 401)
        assert body["code"] == ("token_expired" if what == "expired" else "token_invalid"), what
        assert token == "" or token not in json.dumps(body)


def test_a_token_outlives_its_session_in_vain(mesh: Mesh) -> None:
    created = create(mesh)
    path = f"/sessions/{created['session_id']}/stream?token={created['token']}"
    call(mesh, "DELETE", f"/sessions/{created['session_id']}")
    status, _, body = exchange(mesh, "GET", path)
    assert (status, body["code"]) == (404, "session_not_found")
    unknown = new_session_id()
    assert exchange(mesh, "GET", f"/sessions/{unknown}/stream?token={created['token']}")[0] == 401


@pytest.mark.parametrize("query", ["rate=0", "rate=-8000", "rate=16000.0", "rate=", "out_rate=11025", "rate=1e4"])
def test_rates_that_cannot_be(mesh: Mesh, query: str) -> None:
    created = create(mesh)
    path = f"/sessions/{created['session_id']}/stream?token={created['token']}&{query}"
    status, headers, body = exchange(mesh, "GET", path)
    assert (status, body["path"]) == (422, query.partition("=")[0])
    assert "16000" in body["fix"]
    assert is_problem(headers, body, 422)


# -- what goes wrong inside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("x", path="p", fix="f"), 422),
        (errors.MeshError("stt: x", code="config_invalid"), 422),  # a worker's, as it comes over a claim
        (errors.MeshError("llm: x", code="provider_unknown"), 422),
        (errors.AuthError("x"), 401),
        (errors.SessionError("x"), 404),
        (errors.OverloadError("x"), 503),
        (errors.BusError("x"), 503),
        (errors.StoreError("x"), 503),
        (errors.MeshError("tts: x", code="provider_rejected"), 503),
        (errors.ModelError("x"), 503),
        (errors.MeshError("x"), 500),
    ],
)
def test_every_error_has_its_status(error: errors.MeshError, status: int) -> None:
    answer = problem_of(error)
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_nothing_of_all_this_was_our_fault(mesh: Mesh) -> None:
    """Last in the file: what came before has left no 500 in the log."""
    text = (mesh.log_dir / "transport.log").read_text()
    assert "request_failed" not in text, [line for line in text.splitlines() if "request_failed" in line][:3]
