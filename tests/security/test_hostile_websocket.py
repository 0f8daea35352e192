"""Whatever comes over the WebSocket: the session goes on or is refused in words; memory is bounded; nothing hangs."""

import asyncio
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest

from bench import instant
from meshag.connectors.transports.websocket import MESSAGE_BYTES, STUCK_S
from meshag.embedded.mesh import Mesh
from meshag.frames import AudioIn
from meshag.testing import TestCaller
from meshes import ask, call, create, join
from standins import (
    cut,
    eventually,
    journal,
    loudest_hz,
    owned,
    piped,
    resident_mb,
    saying,
    stored,
    tidy,
    tone,
    ws_frame,
)

__all__ = ["tidy"]

pytestmark = pytest.mark.security

ALOUD = "This is a sentence that takes a second. " * 80
"""More than a minute of speech."""


async def still_talks(caller: TestCaller) -> None:
    """A whole turn, after whatever was sent before."""
    before = len(caller.events)
    await ask(caller, 7)
    ended = await caller.wait_for("turn_ended", after=before, text="Where is my order number 7?")
    await caller.wait_for("reply_ended", after=before, turn=ended["turn"])


async def heard(mesh: Mesh, created: dict[str, Any], *, at_least: int) -> bytes:
    """The caller's audio as the mesh hears it."""

    async def read() -> bytes:
        frames = await journal(mesh, f"audio.input.{created['session_id']}")
        found = b"".join(frame.pcm for frame in frames if isinstance(frame, AudioIn))
        return found if len(found) >= at_least else b""

    found: bytes = await eventually(f"{at_least} bytes heard", read)
    return found


# -- audio ------------------------------------------------------------------------------------------------------------


async def test_audio_of_odd_length_is_dropped_and_the_call_goes_on(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        for length in (1, 641, 9_999):
            before = len(caller.events)
            await caller.socket.send_bytes(b"\x01" * length)
            error = await caller.wait_for("error", after=before, code="audio_odd_length")
            assert str(length) in error["message"]
        await caller.socket.send_bytes(b"")
        await still_talks(caller)
    pcm = await heard(mesh, created, at_least=640)
    assert b"\x01\x01\x01" not in pcm


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
async def test_callers_of_every_rate_are_heard_and_hear(mesh: Mesh, rate_hz: int) -> None:
    created = create(mesh)
    async with join(created, rate=rate_hz, out_rate=rate_hz) as caller:
        await caller.wait_for("ready", rate=rate_hz, out_rate=rate_hz)
        for message in cut(tone(1_000, rate_hz, 1_000), rate_hz // 50 * 2):
            await caller.socket.send_bytes(message)
        pcm = await heard(mesh, created, at_least=30_000)
        await caller.type("Speak")
        await caller.wait_for("speech_ended", interrupted=False)
    assert abs(len(pcm) - 32_000) <= 2_000  # a second at 16 kHz; the resampler keeps the last few ms
    assert abs(loudest_hz(pcm, 16_000) - 1_000) < 5
    assert abs(len(caller.audio) / 2 / rate_hz - 3.0) < 0.1
    assert abs(loudest_hz(bytes(caller.audio[: rate_hz * 2]), rate_hz) - 200) < 5


async def test_a_rate_that_was_not_declared_is_heard_as_the_declared_one(mesh: Mesh) -> None:
    """48 kHz sent as 16 kHz is three times as long: garbage in, but bounded, and the call goes on."""
    created = create(mesh)
    async with join(created) as caller:
        for message in cut(tone(900, 48_000, 1_000), 1_920):
            await caller.socket.send_bytes(message)
        pcm = await heard(mesh, created, at_least=90_000)
        assert abs(loudest_hz(pcm, 16_000) - 300) < 5
        await still_talks(caller)


@pytest.mark.parametrize("kind", ["silence", "noise", "loudest", "alternating"])
async def test_audio_that_says_nothing(mesh: Mesh, kind: str) -> None:
    random = np.random.default_rng(7)
    pcm = {
        "silence": bytes(64_000),
        "noise": (random.integers(-3_000, 3_000, 32_000) * 2).astype("<i2").tobytes(),
        "loudest": b"\xff\x7f" * 32_000,
        "alternating": b"\xff\x7f\x00\x80" * 16_000,
    }[kind]
    async with join(create(mesh)) as caller:
        for message in cut(pcm, 640):
            await caller.socket.send_bytes(message)
        await still_talks(caller)
        assert not caller.of("error")


async def test_audio_in_pieces_of_any_size(mesh: Mesh) -> None:
    created = create(mesh)
    pcm = tone(500, 16_000, 1_000)
    random = np.random.default_rng(3)
    async with join(created) as caller:
        at = 0
        while at < len(pcm):
            size = int(random.choice([2, 6, 30, 638, 642, 3_000]))
            await caller.socket.send_bytes(pcm[at : at + size])
            at += size
        assert await heard(mesh, created, at_least=len(pcm)) == pcm


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", "message_invalid"),
        ("{", "message_invalid"),
        ("null", "message_invalid"),
        ("[]", "message_invalid"),
        ("12", "message_invalid"),
        ("{}", "message_invalid"),
        ('{"type": 1}', "message_invalid"),
        ('{"type": "text", "text": 1}', "message_invalid"),
        ('{"type": "text", "text": null}', "message_invalid"),
        ('{"type": "text", "text": "\\ud800"}', None),
        ('{"type": "ping", "x": ' + "[" * 30_000 + "]" * 30_000 + "}", None),
        ('{"type": "ping", "x": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}", None),
        ("\x00", "message_invalid"),
        ('{"type": "config"}', "message_unknown"),
        ('{"type": ""}', "message_unknown"),
        ('{"type": "TEXT", "text": "x"}', "message_unknown"),
        ('{"type": "text"}', "text_invalid"),
        ('{"type": "text", "text": "   "}', "text_invalid"),
        ('{"type": "text", "text": "a\\u0000b"}', "text_invalid"),
        ('{"type": "text", "text": "' + "x" * 4_001 + '"}', "text_invalid"),
    ],
    ids=range(20),
)
async def test_messages_that_mean_nothing(mesh: Mesh, message: str, code: str | None) -> None:
    async with join(create(mesh)) as caller:
        await caller.socket.send_str(message)
        if code is None:
            await eventually("an answer", lambda: caller.of("error") or caller.of("pong"))
        else:
            await caller.wait_for("error", code=code)
        await still_talks(caller)


async def test_text_of_every_kind_is_taken_as_it_is(mesh: Mesh) -> None:
    created = create(mesh, saying("Understood.", "text_chat"))
    said = ["*", ">", "a.b.c", "line\nline", "👩‍👩‍👧 ünï", "<script>", "{system}", "x" * 4_000, "\u202e", "' OR 1=1 --"]
    async with join(created) as caller:
        for number, text in enumerate(said, 1):
            await caller.type(f" {text} ")
            await caller.wait_for("speech_ended", turn=number)
        assert not caller.of("error")
        path = f"/sessions/{created['session_id']}/history"
        turns = await eventually("stored", lambda: (t := call(mesh, "GET", path)[1]["turns"])[len(said) - 1 :] and t)
    assert [turn["user"] for turn in turns] == said


async def test_a_flood_of_messages_is_read_no_faster_than_it_is_worth(mesh: Mesh) -> None:
    async with join(create(mesh)) as caller:
        await caller.wait_for("ready")
        before_mb = resident_mb(mesh)
        for _ in range(500):
            await caller.socket.send_str('{"type": "ping"}')
        await asyncio.sleep(2)
        answered = len(caller.of("pong"))
        assert 50 <= answered <= 400, answered  # a burst of 100, then 50 a second
        assert resident_mb(mesh) - before_mb < 20
        assert not caller.closed


@pytest.mark.parametrize("size", [MESSAGE_BYTES, 10_000_000])
@pytest.mark.parametrize("kind", ["audio", "text"])
async def test_messages_that_are_too_long(mesh: Mesh, size: int, kind: str) -> None:
    created = create(mesh)
    before_mb = resident_mb(mesh)
    async with join(created) as caller:
        await caller.wait_for("ready")
        try:
            if kind == "audio":
                await caller.socket.send_bytes(bytes(size))
            else:
                await caller.socket.send_str('{"type": "text", "text": "' + "x" * size + '"}')
        except ConnectionError:
            pass  # closed while it was being sent
        await eventually("closed", lambda: caller.closed)
        assert caller.socket.close_code in (1009, 1006)
    assert resident_mb(mesh) - before_mb < 20
    await eventually("the call is over", lambda: owned(mesh, "transport") == 0)
    async with join(created) as caller:  # the session is as it was
        await still_talks(caller)


# -- bytes that are no WebSocket --------------------------------------------------------------------------------------


class Raw:
    """A client without manners. `with Raw(created) as raw`: gone without a word at the end."""

    def __init__(self, created: dict[str, Any], *, query: str = "", receive_bytes: int = 0) -> None:
        url = urlsplit(created["room_url"])
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect((url.hostname, url.port))
        self.socket.sendall(
            f"GET {url.path}?token={created['token']}{query} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, data: bytes) -> None:
        self.socket.setblocking(True)
        self.socket.settimeout(10)
        self.socket.sendall(data)

    def is_closed(self) -> bool:
        self.socket.setblocking(False)
        try:
            while data := self.socket.recv(65_536):
                del data
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def kill(self) -> None:
        """Gone without a word: a reset. Idempotent."""
        if self.socket.fileno() < 0:
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.socket.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(5_000),
        b"\xff" * 5_000,
        ws_frame(b"x", opcode=3),
        ws_frame(b"x", opcode=0),
        ws_frame(b"\xff\xfe", opcode=1),
        ws_frame(b"", length=2**62),
        ws_frame(b"", length=2**63 + 5),
        ws_frame(b"x" * 126, opcode=9),
        ws_frame(b"\x00", opcode=8),
        ws_frame(b"\x00\x01", opcode=8),
        bytes([0xC2, 0x81]) + bytes(5),  # compressed, which was not agreed upon
        bytes([0x82, 0x01, 0x00]),  # not masked
    ],
    ids=range(13),
)
async def test_bytes_that_are_no_websocket(mesh: Mesh, data: bytes) -> None:
    created = create(mesh)
    with await asyncio.to_thread(Raw, created) as raw:
        await eventually("connected", lambda: owned(mesh, "transport") >= 1)
        raw.send(data)
        if data != bytes([0x82, 0x01, 0x00]):  # the library forgives this one
            await eventually("closed", raw.is_closed)
    await eventually("the call is over", lambda: owned(mesh, "transport") == 0)
    async with join(created) as caller:
        await still_talks(caller)


async def test_a_message_in_endless_pieces_is_bounded(mesh: Mesh) -> None:
    created = create(mesh)
    before_mb = resident_mb(mesh)
    piece = ws_frame(bytes(60_000), opcode=0, fin=False)
    with await asyncio.to_thread(Raw, created) as raw:
        raw.send(ws_frame(bytes(10_000), opcode=2, fin=False))
        taken = 0
        try:
            while taken < 2_000:
                await asyncio.to_thread(raw.send, piece)
                taken += 1
        except OSError:
            pass
        assert taken < 1_000, f"{taken * 60 / 1000:.0f} MB of one message were taken"
    assert resident_mb(mesh) - before_mb < 20
    await eventually("the call is over", lambda: owned(mesh, "transport") == 0)


# -- more than can be heard -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_bytes", [640, 30, MESSAGE_BYTES - 2])
async def test_an_hour_of_silence_at_once_is_not_taken_at_once(mesh: Mesh, message_bytes: int) -> None:
    created = create(mesh, piped("transcription"))
    hour = 3_600 * 32_000
    frame = ws_frame(bytes(message_bytes))
    with await asyncio.to_thread(Raw, created) as raw:
        await eventually("connected", lambda: owned(mesh, "transport") == 1)
        before_mb = resident_mb(mesh)
        sent, began = 0, time.monotonic()
        raw.socket.setblocking(False)
        while time.monotonic() - began < 4 and sent < hour:
            try:
                sent += raw.socket.send(frame * 20)  # torn where the buffer ends: what matters is how much is taken
            except BlockingIOError:
                await asyncio.sleep(0.02)
        grown_mb = resident_mb(mesh) - before_mb
        frames = await journal(mesh, f"audio.input.{created['session_id']}")
        took = time.monotonic() - began
    assert frames, "nothing heard"
    assert len(frames) * 0.02 <= took + 5 + 3, "heard faster than it can be spoken"  # a burst of 5 s, and a message
    assert grown_mb < 30, f"{grown_mb:.0f} MB more for {sent / 1e6:.0f} MB sent"
    assert sent < hour / 4, "taken without end"
    await eventually("the call is over", lambda: owned(mesh, "transport") == 0)


# -- callers who leave, or do not listen ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["reset", "closed", "in the middle of an answer", "in the middle of a flood"])
async def test_a_caller_who_vanishes_frees_the_call(mesh: Mesh, way: str) -> None:
    created = create(mesh, saying(ALOUD))
    with await asyncio.to_thread(Raw, created) as raw:
        await eventually("connected", lambda: owned(mesh, "transport") == 1)
        if way == "in the middle of an answer":
            raw.send(ws_frame(b'{"type": "text", "text": "Talk"}', opcode=1))
            await asyncio.sleep(1)
        elif way == "in the middle of a flood":
            raw.socket.setblocking(False)
            for _ in range(20):
                try:
                    while True:
                        raw.socket.send(ws_frame(bytes(32_000)))
                except BlockingIOError:
                    await asyncio.sleep(0.1)
        elif way == "closed":
            raw.socket.close()
    await eventually("the call is over", lambda: owned(mesh, "transport") == 0, timeout_s=5)
    async with join(created) as caller:  # the session is still there
        await caller.wait_for("ready")


async def test_a_caller_who_never_reads_is_bounded_and_let_go(mesh: Mesh) -> None:
    created = create(mesh, saying(ALOUD))
    before_mb = resident_mb(mesh)
    with await asyncio.to_thread(Raw, created, query="&out_rate=48000", receive_bytes=4_096) as raw:
        await eventually("connected", lambda: owned(mesh, "transport") == 1)
        raw.send(ws_frame(b'{"type": "text", "text": "Talk"}', opcode=1))
        began = time.monotonic()
        await eventually("let go", lambda: owned(mesh, "transport") == 0, timeout_s=30)
        assert time.monotonic() - began > STUCK_S, "let go before it was stuck"
        assert resident_mb(mesh) - before_mb < 20
        await eventually("cut", raw.is_closed)
    async with join(created) as caller:
        await caller.type("Are you there?")
        await caller.wait_for("speech_started")


async def test_the_end_of_a_session_does_not_wait_for_a_caller_who_never_reads(mesh: Mesh) -> None:
    created = create(mesh, saying(ALOUD))
    with await asyncio.to_thread(Raw, created, query="&out_rate=48000", receive_bytes=4_096) as raw:
        raw.send(ws_frame(b'{"type": "text", "text": "Talk"}', opcode=1))
        await asyncio.sleep(4)
        call(mesh, "DELETE", f"/sessions/{created['session_id']}")
        began = time.monotonic()
        await eventually("let go", lambda: owned(mesh, "transport") == 0)
        await eventually("cut", raw.is_closed)
        assert time.monotonic() - began < 10


# -- who may come in --------------------------------------------------------------------------------------------------


async def test_pages_of_other_sites_and_other_names_do_not_get_a_websocket(mesh: Mesh) -> None:
    created = create(mesh)
    url = f"{created['room_url']}?token={created['token']}"
    async with aiohttp.ClientSession() as http:
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url, headers=headers)
            assert refused.value.status == 403, headers
        async with http.ws_connect(url, headers={"Origin": mesh.url}) as allowed:
            assert (await allowed.receive_json(timeout=10))["type"] == "ready"


async def test_only_a_session_s_own_way_back_leads_into_it(mesh: Mesh) -> None:
    created, other = create(mesh), create(mesh)
    async with join(created) as caller, join(other) as stranger:
        own = (await caller.wait_for("ready"))["resume"]
        foreign = (await stranger.wait_for("ready"))["resume"]
        asked = [
            (f"resume={foreign}", 401),
            (f"resume={created['token']}", 401),
            (f"token={own}", 401),
            (f"resume=&token={created['token']}", 401),
            ("resume=", 401),
            (f"resume={own}&at=*", 422),
            (f"resume={own}&at=1.2-3.4", 422),
            (f"resume={own}&turn=-1", 422),
            (f"resume={own}&turn=1&heard_ms=1e9", 422),
            (f"resume={own}&turn={'9' * 30}", 422),
        ]
        async with aiohttp.ClientSession() as http:
            for query, status in asked:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(f"{created['room_url']}?{query}")
                assert refused.value.status == status, query
            for query in (
                "turn=999999999&heard_ms=999999999&at=999999999.999999999-0.0-0.0",
                "turn=0&at=0.0-0.0-0.0",
                "",
            ):
                async with http.ws_connect(f"{created['room_url']}?resume={own}&{query}") as back:
                    assert (await back.receive_json(timeout=10))["type"] == "ready"
    async with join(created) as caller:
        await still_talks(caller)


async def test_the_newer_of_two_connections_wins_and_the_older_is_told(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as older:
        await older.wait_for("ready")
        async with join(created) as newer:
            await newer.wait_for("ready")
            assert (await older.wait_for("session_ended"))["reason"] == "replaced"
            await eventually("closed", lambda: older.closed)
            assert older.socket.close_code == 1000
            await still_talks(newer)
            assert not newer.closed
            assert owned(mesh, "transport") == 1


@pytest.mark.parametrize("many", [2, 4, 8])
async def test_of_many_connections_at_once_one_is_left(mesh: Mesh, many: int) -> None:
    created = create(mesh)
    callers = [join(created) for _ in range(many)]
    await asyncio.gather(*(caller.__aenter__() for caller in callers))
    try:
        await eventually("one is left", lambda: sum(not caller.closed for caller in callers) == 1)
        await asyncio.sleep(0.5)
        (left,) = [caller for caller in callers if not caller.closed]
        await still_talks(left)
    finally:
        await asyncio.gather(*(caller.__aexit__(None, None, None) for caller in callers))


async def test_nobody_hears_another_session(mesh: Mesh) -> None:
    one, two = create(mesh), create(mesh)
    async with join(one) as first, join(two) as second:
        await ask(first, 1)
        await first.wait_for("reply_ended")
        assert set(second.kinds()) <= {"ready"}
        assert not second.audio


async def test_nothing_of_all_this_was_our_fault(mesh: Mesh) -> None:
    """Last in the file: no call and no request has failed inside, and everybody is still there."""
    text = (mesh.log_dir / "transport.log").read_text()
    for sign in ("request_failed", "call_failed", "task_failed", "Traceback", "never retrieved"):
        assert sign not in text, [line for line in text.splitlines() if sign in line][:3]
    with stored(mesh) as kept:
        assert kept.ping()
    assert instant.SILENCE
