"""Deepgram's own SDK takes the stand-in for Deepgram."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment

from vendors.deepgram import DeepgramStandIn
from vendors.spoken import speak

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepgram"),
]

SAID = "alpha hotel zulu"
SILENCE_1_S = bytes(32_000)


@pytest_asyncio.fixture
async def vendor() -> AsyncIterator[DeepgramStandIn]:
    async with DeepgramStandIn() as vendor:
        yield vendor  # type: ignore[misc]


def client_of(vendor: DeepgramStandIn, key: str = "dg-test") -> AsyncDeepgramClient:
    address = vendor.url.replace("http://", "ws://")
    environment = DeepgramClientEnvironment(base=vendor.url, production=address, agent=address, agent_rest=vendor.url)
    return AsyncDeepgramClient(api_key=key, environment=environment)


async def until(connection: Any, wanted: Any) -> list[Any]:
    found = []
    async with asyncio.timeout(5):
        while not found or not wanted(found[-1]):
            found.append(await connection.recv())
    return found


def nova(vendor: DeepgramStandIn, key: str = "dg-test", **more: Any) -> Any:
    options = {"model": "nova-3", "encoding": "linear16", "sample_rate": "16000", "interim_results": "true", **more}
    return client_of(vendor, key).listen.v1.connect(**options)


async def test_nova_hears_pauses_and_the_end(vendor: DeepgramStandIn) -> None:
    async with nova(vendor, endpointing="300", utterance_end_ms="1000", vad_events="true") as connection:
        for pcm in (speak("alpha hotel"), SILENCE_1_S):
            for at in range(0, len(pcm), 3_200):
                await connection.send_media(pcm[at : at + 3_200])
        found = await until(connection, lambda message: message.type == "UtteranceEnd")
        texts = [message.channel.alternatives[0].transcript for message in found if message.type == "Results"]
        assert texts[0] == "alpha"
        settled = next(message for message in found if getattr(message, "speech_final", False))
        assert settled.is_final
        assert settled.channel.alternatives[0].transcript == "alpha hotel"
        await connection.send_close_stream()
        assert (await until(connection, lambda message: message.type == "Metadata"))[-1].channels == 1


async def test_finalize_settles_what_was_said(vendor: DeepgramStandIn) -> None:
    async with nova(vendor, endpointing="false") as connection:
        await connection.send_keep_alive()
        await connection.send_media(speak(SAID))
        await connection.send_finalize()
        settled = (await until(connection, lambda message: message.from_finalize))[-1]
        assert settled.channel.alternatives[0].transcript == SAID
        assert (settled.start, settled.duration) == (0.0, pytest.approx(0.98))


def flux(vendor: DeepgramStandIn, **more: Any) -> Any:
    options = {"model": "flux-general-en", "encoding": "linear16", "sample_rate": "16000", **more}
    return client_of(vendor).listen.v2.connect(**options)


async def test_flux_walks_through_its_states(vendor: DeepgramStandIn) -> None:
    async with flux(vendor, eager_eot_threshold="0.4") as connection:
        audio = speak("alpha hotel", tail_ms=280) + speak("zulu", lead_ms=0) + SILENCE_1_S
        for at in range(0, len(audio), 2_560):
            await connection.send_media(audio[at : at + 2_560])
        found = await until(connection, lambda message: getattr(message, "event", "") == "EndOfTurn")
        assert found[0].type == "Connected"
        states = [message.event for message in found[1:] if message.event != "Update"]
        assert states == ["StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EagerEndOfTurn", "EndOfTurn"]
        assert (found[-1].transcript, found[-1].trigger, found[-1].turn_index) == (SAID, "model", 0)


async def test_flux_ends_a_turn_when_it_is_asked_to(vendor: DeepgramStandIn) -> None:
    async with flux(vendor, eot_threshold="1.0") as connection:
        await connection.send_force_end_turn()
        ignored = (await until(connection, lambda message: message.type == "Warning"))[-1]
        assert ignored.code == "FORCE_END_TURN_NO_ACTIVE_TURN"
        await connection.send_media(speak(SAID) + SILENCE_1_S)
        await connection.send_force_end_turn()
        ended = (await until(connection, lambda message: getattr(message, "event", "") == "EndOfTurn"))[-1]
        assert (ended.transcript, ended.trigger) == (SAID, "manual")


async def test_refusals_are_deepgrams(vendor: DeepgramStandIn) -> None:
    with pytest.raises(ApiError) as refused:
        async with nova(vendor, key="dg-wrong"):
            pass
    assert refused.value.status_code == 401
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": "Token dg-test"}
        query = "encoding=linear16&sample_rate=16000"
        for path, said in (
            (f"/v1/listen?{query}&utterance_end_ms=500", "utterance_end_ms"),
            (f"/v1/listen?{query}&punctuate=True", "punctuate"),
            (f"/v1/listen?{query}&model=flux-general-en", "/v2/listen"),
            (f"/v1/listen?{query}&model=nova-2&keyterm=x", "Keyterm"),
            (f"/v2/listen?{query}&model=nova-3", "model"),
            (f"/v2/listen?{query}&model=flux-general-en&eot_threshold=0.2", "eot_threshold"),
            (f"/v2/listen?{query}&model=flux-general-en&interim_results=true", "interim_results"),
        ):
            async with http.get(vendor.url + path, headers=headers) as answer:
                assert answer.status == 400
                body = await answer.json()
                assert set(body) == {"err_code", "err_msg", "request_id"}
                assert said in body["err_msg"]


@pytest.mark.parametrize("path", ["/v1/listen?", "/v2/listen?model=flux-general-en&"])
async def test_it_hangs_up_as_deepgram_does(vendor: DeepgramStandIn, path: str) -> None:
    vendor.idle_s = 0.2
    address = f"{vendor.url}{path}encoding=linear16&sample_rate=16000"
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(address, headers={"Authorization": "Token dg-test"}) as socket,
        asyncio.timeout(5),
    ):
        while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            pass
        assert (message.data, "NET-0001" in message.extra) == (1011, True)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(address, headers={"Authorization": "Token dg-test"}) as socket,
        asyncio.timeout(5),
    ):
        await socket.send_str('{"type":"Nonsense"}')
        while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            pass
        assert message.data == 1008
