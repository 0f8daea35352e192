"""The ElevenLabs connector against a server that speaks ElevenLabs' protocol."""

import asyncio
import base64
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, ClassVar

import pytest
from aiohttp import web
from pydantic import ValidationError

from meshag.connectors import elevenlabs_socket
from meshag.connectors.tts import elevenlabs
from meshag.connectors.tts.elevenlabs import ElevenLabsOptions, ElevenLabsTts
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors import voice as tones
from vendors.elevenlabs import ElevenLabsStandIn
from vendors.faults import StandIn
from vendors.fuzz import EXAMPLES, Babbler, odd_bytes, odd_http, odd_json
from vendors.tts_contract import (
    KEY,
    LONG,
    PATIENCE_S,
    SECRET_TEXT,
    TEXT,
    Connect,
    VendorTtsContract,
    Way,
    heard,
    listen,
    spoken,
    until,
)

pytestmark = pytest.mark.contract

RACHEL = "21m00Tcm4TlvDq8ikWAM"
BOTH = pytest.mark.parametrize("transport", ["websocket", "http"])


@pytest.fixture
async def vendor() -> AsyncIterator[ElevenLabsStandIn]:
    async with ElevenLabsStandIn(key=KEY) as vendor:
        yield vendor


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connected(url: str) -> ElevenLabsTts:
        monkeypatch.setenv("ELEVENLABS_API_KEY", KEY)
        monkeypatch.setenv("ELEVENLABS_BASE_URL", url)
        return ElevenLabsTts()

    return connected


@pytest.fixture(params=["websocket", "http"])
def way(request: pytest.FixtureRequest) -> Way:
    return {"voice": RACHEL, "transport": request.param}


class TestElevenLabs(VendorTtsContract):
    over_http: ClassVar[Way] = {"voice": RACHEL, "transport": "http"}
    content_type: ClassVar[str] = "audio/pcm"


@pytest.fixture
async def connector(vendor: ElevenLabsStandIn, connect: Connect) -> AsyncIterator[ElevenLabsTts]:
    connector = connect(vendor.url)
    assert isinstance(connector, ElevenLabsTts)
    yield connector
    await connector.aclose()


def options(**given: Any) -> ElevenLabsOptions:
    return ElevenLabsOptions.model_validate({"voice": RACHEL, **given})


def messages(vendor: ElevenLabsStandIn) -> list[Any]:
    return [one["body"] for one in vendor.requests if one["method"] == "WS"]


def handshakes(vendor: ElevenLabsStandIn) -> list[dict[str, Any]]:
    return [one for one in vendor.requests if one["path"].endswith("multi-stream-input") and one["method"] == "GET"]


class TestOptions:
    def test_the_documented_configuration(self) -> None:
        given = {"model": "eleven_multilingual_v2", "voice": "Rachel", "stability": 0.5, "similarity_boost": 0.8}
        assert ElevenLabsOptions.model_validate(given).voice_settings == {"stability": 0.5, "similarity_boost": 0.8}
        assert ElevenLabsOptions().voice_settings == {}

    @pytest.mark.parametrize(
        "given", [{"speed": 1.3}, {"speed": 0.6}, {"stability": -0.1}, {"seed": -1}, {"api_key": "x"}, {"model": "a/b"}]
    )
    def test_what_is_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ElevenLabsOptions.model_validate(given)

    @pytest.mark.parametrize(
        ("env", "detail"),
        [
            ({}, "set ELEVENLABS_API_KEY"),
            ({"ELEVENLABS_API_KEY": "k", "ELEVENLABS_BASE_URL": "nowhere"}, "ELEVENLABS_BASE_URL is not"),
            ({"ELEVENLABS_API_KEY": "k", "ELEVENLABS_BASE_URL": "http://[::1"}, "ELEVENLABS_BASE_URL is not"),
            ({"ELEVENLABS_API_KEY": "k", "ELEVENLABS_BASE_URL": "http://a:b"}, "ELEVENLABS_BASE_URL is not"),
        ],
    )
    def test_availability(self, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], detail: str) -> None:
        for name in ("ELEVENLABS_API_KEY", "ELEVENLABS_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        found = ElevenLabsTts().availability()
        assert not found.available
        assert found.detail.startswith(detail)

    def test_with_a_key_it_is_available(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ELEVENLABS_API_KEY", KEY)
        assert ElevenLabsTts().availability().available
        assert KEY not in repr(ElevenLabsTts().availability())


class TestWire:
    async def test_options_on_the_websocket(self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts) -> None:
        given = {"model": "eleven_turbo_v2_5", "stability": 0.4, "speed": 1.1, "language": "de", "seed": 7}
        await spoken(await connector.open(options(**given)), TEXT)
        (asked,) = handshakes(vendor)
        assert asked["path"] == f"/v1/text-to-speech/{RACHEL}/multi-stream-input"
        assert asked["query"] == {
            "model_id": "eleven_turbo_v2_5",
            "output_format": "pcm_24000",
            "auto_mode": "true",
            "inactivity_timeout": "180",
            "seed": "7",
            "language_code": "de",
        }
        assert messages(vendor) == [
            {"text": " ", "context_id": "1", "voice_settings": {"stability": 0.4, "speed": 1.1}},
            {"text": f"{TEXT} ", "context_id": "1", "flush": True},
            {"context_id": "1", "close_context": True},
        ]

    async def test_options_over_http(self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts) -> None:
        given = {"transport": "http", "style": 0.2, "use_speaker_boost": False, "language": "fr"}
        await spoken(await connector.open(options(**given)), TEXT)
        (asked,) = vendor.requests
        assert (asked["method"], asked["path"]) == ("POST", f"/v1/text-to-speech/{RACHEL}/stream")
        assert asked["query"] == {"output_format": "pcm_24000"}
        assert asked["body"] == {
            "text": TEXT,
            "model_id": "eleven_flash_v2_5",
            "seed": 1,
            "voice_settings": {"style": 0.2, "use_speaker_boost": False},
            "language_code": "fr",
        }

    async def test_the_third_generation_goes_over_http(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options(model="eleven_v3"))
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)
        assert [one["method"] for one in vendor.requests] == ["POST"]


class TestVoices:
    @pytest.mark.parametrize(
        ("name", "voice_id"),
        [("Rachel", RACHEL), ("sarah", "EXAVITQu4vr4xnSDxMaL"), ("Roger", "CwhRBWXzGAHq8TQ4Fs17")],
    )
    async def test_a_name_is_looked_up(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, name: str, voice_id: str
    ) -> None:
        await connector.open(options(voice=name))
        assert handshakes(vendor)[0]["path"].split("/")[3] == voice_id

    async def test_once_for_all_who_ask(self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts) -> None:
        await asyncio.gather(*(connector.open(options(voice="Sarah", transport="http")) for _ in range(20)))
        await connector.open(options(voice="Rachel", transport="http"))
        assert [one["path"] for one in vendor.requests] == ["/v1/voices"]

    async def test_one_who_gives_up_takes_nobody_along(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        vendor.faults.set(mute=True)
        first, second = (
            asyncio.create_task(connector.open(options(voice="Sarah", transport="http"))) for _ in range(2)
        )
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(ProviderTimeout):
            await second

    async def test_after_ten_minutes_it_is_asked_again(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = elevenlabs.clock.monotonic_s()
        monkeypatch.setattr(elevenlabs.clock, "monotonic_s", lambda: now)
        await connector.open(options(voice="Sarah", transport="http"))
        now += 599
        await connector.open(options(voice="Sarah", transport="http"))
        assert len(vendor.requests) == 1
        now += 2
        await connector.open(options(voice="Sarah", transport="http"))
        assert len(vendor.requests) == 2

    async def test_an_unknown_name(self, connector: ElevenLabsTts) -> None:
        with pytest.raises(ProviderRejected) as refused:
            await connector.open(options(voice="Nobody"))
        assert refused.value.code == "voice_unknown"

    @BOTH
    async def test_an_unknown_id(self, connector: ElevenLabsTts, transport: str) -> None:
        with pytest.raises(ProviderRejected):
            await spoken(await connector.open(options(voice="x" * 20, transport=transport)), TEXT)

    @pytest.mark.parametrize("fault", [{"status": 401, "code": "missing_permissions"}, {"garbage": "types"}])
    async def test_rachel_is_known_without_the_list(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, fault: dict[str, Any]
    ) -> None:
        vendor.faults.set(**fault)
        voice = await connector.open(options(voice="Rachel", transport="http"))
        with pytest.raises(ConnectorError):
            await connector.open(options(voice="Sarah", transport="http"))
        vendor.faults.set()
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)

    async def test_an_endless_list(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(elevenlabs, "NAMES_BYTES", 1_000_000)
        vendor.faults.set(garbage="long_line")
        with pytest.raises(ProviderGarbage, match="endless"):
            await connector.open(options(voice="Sarah"))


class TestSocket:
    async def test_it_is_open_before_the_first_sentence_and_serves_them_all(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        assert len(vendor.sockets) == 1
        for _ in range(8):  # more than may be open at once
            assert heard(await spoken(voice, "Good evening.")) == tones.codes("Good evening.")
        assert len(handshakes(vendor)) == 1
        await voice.aclose()
        await until(lambda: not vendor.sockets)

    async def test_one_that_was_closed_as_idle_is_opened_again(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        await spoken(voice, TEXT)
        await vendor.hang_up_idle()
        assert heard(await spoken(voice, LONG)) == tones.codes(LONG)
        assert len(handshakes(vendor)) == 2

    async def test_one_that_is_closed_just_as_it_is_asked_is_asked_again_once(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(cut_after=0)
        with pytest.raises(ProviderUnavailable):
            await spoken(voice, TEXT)
        assert len(handshakes(vendor)) == 2
        vendor.faults.set()
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)

    async def test_what_was_half_said_is_not_said_again(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(cut_after=1)
        with pytest.raises(ProviderUnavailable):
            await spoken(voice, LONG)
        assert vendor.texts == [LONG]

    @pytest.mark.parametrize("after", [0, 1])
    async def test_interrupted_its_context_is_closed_at_once(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, after: int
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(silent_after=after)
        speaking = asyncio.create_task(spoken(voice, LONG))
        await until(lambda: len(messages(vendor)) >= 2 + after)
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        await until(lambda: len(messages(vendor)) >= 3)
        assert messages(vendor)[2:] == [{"context_id": "1", "close_context": True}]

    async def test_what_still_comes_of_an_interrupted_sentence_is_never_heard(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(slow_s=0.01)
        async with aclosing(voice.speak(LONG)) as speaking:  # type: ignore[type-var]
            await anext(speaking)
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)
        assert len(handshakes(vendor)) == 1

    async def test_never_more_than_five_contexts_are_open(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(silent_after=1)  # interrupted contexts never come to their end
        for _ in range(12):
            async with aclosing(voice.speak(LONG)) as speaking:  # type: ignore[type-var]
                await anext(speaking)
        vendor.faults.set()
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)
        assert len(handshakes(vendor)) == 3
        assert vendor.complaints == []
        await until(lambda: len(vendor.sockets) == 1)  # those that were given up are closed

    async def test_a_listener_who_is_slow_holds_the_socket_back(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(elevenlabs_socket, "HELD_BYTES", 200_000)
        vendor.faults.set(endless=True)
        voice = await connector.open(options())
        tracemalloc.start()
        try:
            async with aclosing(voice.speak(TEXT)) as speaking:  # type: ignore[type-var]
                await anext(speaking)
                before = tracemalloc.get_traced_memory()[0]
                await asyncio.sleep(0.5)
                assert tracemalloc.get_traced_memory()[0] - before < 2_000_000
        finally:
            tracemalloc.stop()
        vendor.faults.set()
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)

    async def test_opening_that_is_cancelled_leaves_nothing_open(
        self, connector: ElevenLabsTts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Babbler(lambda: b"") as babbler:
            monkeypatch.setenv("ELEVENLABS_BASE_URL", babbler.url)
            other = ElevenLabsTts()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await other.open(options())
            await other.aclose()

    async def test_the_end_of_the_connector_is_the_end_of_its_sockets(
        self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts
    ) -> None:
        voices = [await connector.open(options()) for _ in range(3)]
        await connector.aclose()
        assert not [task for task in asyncio.all_tasks() if "Line" in repr(task.get_coro())]
        await until(lambda: not vendor.sockets)
        assert vendor.closed_with == [1000, 1000, 1000]
        for voice in voices:
            await voice.aclose()


SOCKET_FAULTS: list[tuple[dict[str, Any], type[ConnectorError], str]] = [
    ({"garbage": "binary"}, ProviderGarbage, "provider_garbage"),
    ({"garbage": "empty"}, ProviderGarbage, "provider_garbage"),
    ({"garbage": "json"}, ProviderTimeout, "provider_timeout"),
    ({"error_after": 1, "code": "quota_exceeded"}, ProviderUnavailable, "provider_quota"),
    ({"error_after": 1, "code": "voice_id_does_not_exist"}, ProviderRejected, "voice_unknown"),
    ({"error_after": 1, "code": "detected_unusual_activity"}, ProviderRejected, "provider_unauthorized"),
    ({"error_after": 1, "code": "invalid_input_message"}, ProviderRejected, "provider_rejected"),
    ({"error_after": 1, "code": "too_many_concurrent_requests"}, ProviderLimited, "provider_limited"),
    ({"error_after": 1, "code": "input_timeout_exceeded"}, ProviderUnavailable, "provider_unavailable"),
    ({"error_after": 1, "code": "a word never heard before"}, ProviderUnavailable, "provider_unavailable"),
]


class TestFaults:
    @pytest.mark.parametrize(("faults", "kind", "code"), SOCKET_FAULTS, ids=lambda given: str(given))
    async def test_what_only_a_socket_can_say(
        self,
        vendor: ElevenLabsStandIn,
        connector: ElevenLabsTts,
        faults: dict[str, Any],
        kind: type[ConnectorError],
        code: str,
    ) -> None:
        voice = await connector.open(options())
        vendor.faults.set(**faults)
        with pytest.raises(kind) as failed:
            await spoken(voice, SECRET_TEXT)
        assert failed.value.code == code
        assert "never heard" not in str(failed.value)
        vendor.faults.set()
        assert heard(await spoken(voice, TEXT)) == tones.codes(TEXT)

    async def test_an_empty_quota_is_no_wrong_key(self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts) -> None:
        vendor.faults.set(status=401, code="quota_exceeded")
        with pytest.raises(ProviderUnavailable) as failed:
            await spoken(await connector.open(options(transport="http")), TEXT)
        assert failed.value.code == "provider_quota"

    async def test_a_socket_that_failed_is_not_kept(self, vendor: ElevenLabsStandIn, connector: ElevenLabsTts) -> None:
        voice = await connector.open(options())
        for faults in ({"garbage": "types"}, {"cut_after": 1}, {"error_after": 0}, {}):
            vendor.faults.set(**faults)
            with suppress(ConnectorError):
                await spoken(voice, TEXT)
        await until(lambda: len(vendor.sockets) == 1)
        reading = [task for task in asyncio.all_tasks() if "Line" in repr(task.get_coro())]
        assert len(reading) == 1


class GarbageSocket(StandIn):
    """Answers what it is asked on a WebSocket with the frames that `frames` gives, and hangs up."""

    def __init__(self, frames: Callable[[], list[str | bytes]]) -> None:
        super().__init__()
        self._frames = frames

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.*}", self._socket)]

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(timeout=0.05)
        await socket.prepare(request)
        async for message in socket:
            if "flush" not in message.data:
                continue
            for frame in self._frames():
                await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
            break
        await socket.close()
        return socket


def good_frames() -> list[Any]:
    audio = {"audio": base64.b64encode(tones.say("One two.", 24_000)[:9_601]).decode(), "isFinal": None}
    return [
        {**audio, "contextId": "1"},
        {**audio, "contextId": "1"},
        {"isFinal": True, "contextId": "1", "audio": None},
    ]


@pytest.mark.fuzz
class TestGarbage:
    async def test_on_the_websocket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(12)

        def frames() -> list[str | bytes]:
            found: list[str | bytes] = []
            for frame in good_frames():
                value = odd_json(rng, frame) if rng.random() < 0.4 else frame
                text = elevenlabs.msgspec.json.encode(value)
                if rng.random() < 0.2:
                    text = odd_bytes(rng, text)
                found.append(text.decode(errors="replace") if rng.random() < 0.95 else text)
            if rng.random() < 0.2:
                rng.shuffle(found)
            return found

        async with GarbageSocket(frames) as babbler:
            monkeypatch.setenv("ELEVENLABS_BASE_URL", babbler.url)
            connector = ElevenLabsTts()
            voice = await connector.open(options())
            clean = 0
            for _ in range(EXAMPLES // 2):
                async with asyncio.timeout(PATIENCE_S):
                    clean += await listen(voice) > 0
            await connector.aclose()
        assert clean > EXAMPLES // 8

    async def test_lists_of_voices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(13)
        good = {"voices": [{"voice_id": RACHEL, "name": "Rachel", "labels": {}}, {"voice_id": "../x", "name": "Odd"}]}

        def answer() -> bytes:
            body = elevenlabs.msgspec.json.encode(odd_json(rng, good))
            return odd_http(rng, odd_bytes(rng, body) if rng.random() < 0.3 else body, "application/json")

        async with Babbler(answer) as babbler:
            monkeypatch.setenv("ELEVENLABS_BASE_URL", babbler.url)
            for _ in range(EXAMPLES // 10):
                connector = ElevenLabsTts()
                for name in ("Odd", "Nobody"):
                    with suppress(ConnectorError):
                        await connector.open(options(voice=name, transport="http"))
                await connector.aclose()
