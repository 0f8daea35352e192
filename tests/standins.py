"""What several tests of the HTTP and WebSocket faces need: raw HTTP, configurations, a look behind the scenes."""

import asyncio
import http.client
import json
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import valkey

from bench import instant
from meshag.bus.connection import Bus
from meshag.bus.journal import Journal
from meshag.embedded.mesh import Mesh
from meshag.frames import AnyFrame

FLOWS: dict[str, list[tuple[str, str, str]]] = {
    "voice_chat": [
        ("transport", "stt", "audio"),
        ("stt", "llm", "text"),
        ("llm", "tts", "text"),
        ("tts", "transport", "audio"),
    ],
    "text_chat": [("transport", "llm", "text"), ("llm", "transport", "text")],
    "transcription": [("transport", "stt", "audio"), ("stt", "transport", "text")],
    "announcement": [("transport", "tts", "text"), ("tts", "transport", "audio")],
    "captions": [
        ("transport", "stt", "audio"),
        ("stt", "llm", "text"),
        ("stt", "transport", "text"),
        ("llm", "tts", "text"),
        ("llm", "transport", "text"),
        ("tts", "transport", "audio"),
    ],
}


def piped(name: str, **more: Any) -> dict[str, Any]:
    """A session's `config` on the instant providers with one of the flows."""
    flow = [{"from": a, "to": b, "stream": stream} for a, b, stream in FLOWS[name]]
    return instant.config(pipeline={"name": name, "flow": flow}, **more)


def saying(reply: str, flow: str = "voice_chat", **more: Any) -> dict[str, Any]:
    """A session's `config` whose language model says `reply`."""
    made = piped(flow, **more)
    connectors: dict[str, Any] = made["connectors"]
    connectors["llm"] = {"primary": "instant", "config": {"instant": {"reply": reply}}}
    return made


def exchange(
    mesh: Mesh, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, Any]:
    """One HTTP exchange with the path as it is written here: status, headers and JSON (or bytes)."""
    address = urlsplit(mesh.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if data is not None and "Transfer-Encoding" not in (headers or {}):
            connection.putheader("Content-Length", str(len(data)))
        try:
            connection.endheaders(data)
        except ConnectionError:
            pass  # refused before all of it was sent: the answer is there
        answer = connection.getresponse()
        raw = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, answer.headers, json.loads(raw) if raw else None
    except ValueError:
        return answer.status, answer.headers, raw


@pytest.fixture(autouse=True)
def tidy(mesh: Mesh) -> Iterator[None]:
    """For modules that import it: the sessions of a test end with it, so that the mesh of the run never fills up."""
    yield
    for entry in exchange(mesh, "GET", "/sessions?limit=1000")[2]["sessions"]:
        exchange(mesh, "DELETE", f"/sessions/{entry['session_id']}")


def stored(mesh: Mesh) -> "valkey.Valkey":
    """Valkey as the mesh uses it. Close it."""
    assert mesh.servers is not None
    return valkey.Valkey.from_url(mesh.servers.valkey_url.replace("valkey://", "redis://"), decode_responses=True)


async def journal(mesh: Mesh, *names: str) -> list[AnyFrame]:
    """What the journal holds on these subjects."""
    assert mesh.servers is not None
    bus = await Bus.connect(mesh.servers.nats_url, name="test")
    try:
        return [frame for name in names for frame in await Journal(bus).read(name)]
    finally:
        await bus.close()


async def eventually(what: str, check: Callable[[], Any | Awaitable[Any]], *, timeout_s: float = 20) -> Any:
    """The first true answer of `check`."""
    end = time.monotonic() + timeout_s
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.1)


def owned(mesh: Mesh, stage: str) -> int:
    """How many sessions the first worker of a stage owns."""
    service = mesh.find(stage)  # type: ignore[arg-type]
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.request("GET", "/ready")
        found: int = json.loads(connection.getresponse().read())["sessions"]["owned"]
        return found
    finally:
        connection.close()


def resident_mb(mesh: Mesh, stage: str = "transport") -> float:
    """Memory of the first worker of a stage."""
    status = Path(f"/proc/{mesh.find(stage).child.pid}/status").read_text()  # type: ignore[arg-type]
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def tone(hz: int, rate_hz: int, ms: int) -> bytes:
    """PCM16 of a sine."""
    at = np.arange(rate_hz * ms // 1000) / rate_hz
    return np.int16(12_000 * np.sin(2 * np.pi * hz * at)).astype("<i2").tobytes()


def loudest_hz(pcm: bytes, rate_hz: int) -> float:
    """The strongest frequency in PCM16."""
    samples = np.frombuffer(pcm, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * rate_hz / len(samples)


def cut(pcm: bytes, size_bytes: int) -> list[bytes]:
    """`pcm` in messages of this size."""
    return [pcm[i : i + size_bytes] for i in range(0, len(pcm), size_bytes)]


def ws_frame(payload: bytes, *, opcode: int = 2, fin: bool = True, length: int | None = None) -> bytes:
    """A masked WebSocket frame, for clients that a library would not let us be. `length`: what it claims."""
    said = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    if said < 126:
        head += bytes([0x80 | said])
    elif said < 65_536:
        head += bytes([0x80 | 126]) + struct.pack(">H", said)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", said)
    return head + bytes(4) + payload
