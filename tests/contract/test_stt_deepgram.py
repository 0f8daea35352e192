"""Speech to text by Deepgram, against a stand-in that speaks its two protocols."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import pytest_asyncio
from pydantic import ValidationError

from meshag.connectors import deepgram_listen, stt_socket
from meshag.connectors.contracts import Deadlines, Heard, SttStream
from meshag.connectors.deepgram_flux import FluxStream
from meshag.connectors.deepgram_nova import NovaStream
from meshag.connectors.failover import connected
from meshag.connectors.stt.deepgram import DeepgramStt, DeepgramSttOptions
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors.deepgram import DeepgramStandIn
from vendors.fuzz import EXAMPLES
from vendors.listening import (
    FAULTS,
    SILENCES,
    WsBabbler,
    endures,
    failure_of,
    feed,
    finals,
    most_memory_mb,
    odd_frames,
    opened,
    silence_of,
    until,
)
from vendors.spoken import WORDS, speak

pytestmark = pytest.mark.contract

KEY = "dg-canary-1234567890"
SAID = "alpha hotel zulu"
SILENCE_1_S = bytes(32_000)
NOVA: dict[str, Any] = {}
NOVA_TURNS: dict[str, Any] = {"turns": True}
FLUX: dict[str, Any] = {"model": "flux-general-en", "turns": False}
FLUX_TURNS: dict[str, Any] = {"model": "flux-general-en"}
BOTH = pytest.mark.parametrize("options", [NOVA, FLUX], ids=["nova", "flux"])
TURNS = pytest.mark.parametrize("options", [NOVA_TURNS, FLUX_TURNS], ids=["nova", "flux"])
EVERY_WAY = pytest.mark.parametrize(
    "options", [NOVA, NOVA_TURNS, FLUX, FLUX_TURNS], ids=["nova", "nova-turns", "flux", "flux-turns"]
)


@pytest_asyncio.fixture
async def vendor() -> AsyncIterator[DeepgramStandIn]:
    async with DeepgramStandIn(KEY) as vendor:
        yield vendor  # type: ignore[misc]


def made(monkeypatch: pytest.MonkeyPatch, url: str, key: str = KEY) -> DeepgramStt:
    monkeypatch.setenv("DEEPGRAM_API_KEY", key)
    monkeypatch.setenv("DEEPGRAM_BASE_URL", url)
    return DeepgramStt()


@pytest_asyncio.fixture
async def connector(vendor: DeepgramStandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeepgramStt]:
    connector = made(monkeypatch, vendor.url)
    yield connector
    await connector.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unanswered question is asked again sooner."""
    monkeypatch.setattr(stt_socket, "TICK_S", 0.06)


class TestOptions:
    def test_none_at_all(self) -> None:
        options = DeepgramSttOptions.model_validate({})
        assert (options.model, options.finds_turns) == ("nova-3", False)

    def test_flux_finds_turns_unless_told_otherwise(self) -> None:
        assert DeepgramSttOptions(model="flux-general-multi").finds_turns
        assert not DeepgramSttOptions(model="flux-general-en", turns=False).finds_turns

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"eot_threshold": 0.7}, "nova-3 does not know it"),
            ({"model": "flux-general-en", "smart_format": True}, "flux-general-en does not know it"),
            ({"model": "flux-general-en", "turns": False, "eot_timeout_ms": 900}, "only with turns"),
            ({"utterance_end_ms": 1000}, "only with turns"),
            ({"turns": True, "utterance_end_ms": 900}, "greater than or equal to 1000"),
            ({"model": "nova-2", "keyterm": ["x"]}, "nova-3 and Flux"),
            ({"model": "flux-general-en", "language": "de"}, "flux-general-multi"),
            ({"model": "flux-general-en", "eot_threshold": 0.5, "eager_eot_threshold": 0.6}, "not above"),
            ({"language": "German"}, "match pattern"),
            ({"key": "x"}, "Extra inputs"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            DeepgramSttOptions.model_validate(options)


class TestAvailability:
    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert made(monkeypatch, "https://api.deepgram.com", "").availability().detail == "set DEEPGRAM_API_KEY"

    @pytest.mark.parametrize(
        "url", ["api.deepgram.com", "ftp://x", "", "wss://", "ws://[::1", "https://a:b", "wsx://a"]
    )
    def test_a_broken_address_is_named(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        found = made(monkeypatch, url).availability()
        assert not found.available
        assert "DEEPGRAM_BASE_URL" in found.detail

    @pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
    def test_both_kinds_of_address_will_do(self, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
        found = made(monkeypatch, f"{scheme}://api.deepgram.com").availability()
        assert found.available
        assert KEY not in found.detail


class TestWire:
    async def test_nova(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        async with opened(connector):
            pass
        (request,) = vendor.requests
        assert request["path"] == "/v1/listen"
        assert request["headers"]["Authorization"] == f"Token {KEY}"
        assert request["query"] == {
            "model": ["nova-3"], "encoding": ["linear16"], "sample_rate": ["16000"], "channels": ["1"],
            "interim_results": ["true"], "endpointing": ["false"], "smart_format": ["true"], "punctuate": ["true"],
        }  # fmt: skip

    async def test_nova_finding_turns(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        options = {"turns": True, "language": "de", "numerals": True, "smart_format": False, "mip_opt_out": True}
        async with opened(connector, **options, keyterm=["Züge & Co", "ICE"]) as stream:
            assert (stream.endpointing, stream.interims) == (True, True)
        query = vendor.requests[-1]["query"]
        assert query["keyterm"] == ["Züge & Co", "ICE"]
        wanted = {"endpointing": "300", "utterance_end_ms": "1000", "language": "de", "numerals": "true"}
        wanted |= {"smart_format": "false", "mip_opt_out": "true"}
        assert {name: query[name] for name in wanted} == {name: [value] for name, value in wanted.items()}

    async def test_flux(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        async with opened(connector, **FLUX) as stream:
            assert (stream.endpointing, stream.interims) == (False, True)
        assert vendor.requests[-1]["path"] == "/v2/listen"
        assert vendor.requests[-1]["query"] == {
            "model": ["flux-general-en"], "encoding": ["linear16"], "sample_rate": ["16000"],
            "eot_threshold": ["1.0"], "eot_timeout_ms": ["60000"],
        }  # fmt: skip
        more = {"eot_threshold": 0.8, "eager_eot_threshold": 0.4, "eot_timeout_ms": 3000, "language": "de"}
        async with opened(connector, model="flux-general-multi", **more) as stream:
            assert stream.endpointing
        query = vendor.requests[-1]["query"]
        assert (query["eot_threshold"], query["eager_eot_threshold"]) == (["0.8"], ["0.4"])
        assert (query["eot_timeout_ms"], query["language_hint"]) == (["3000"], ["de"])

    async def test_audio_goes_in_batches(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        for options, size in ((NOVA, 1_280), (FLUX, 2_560)):
            async with opened(connector, **options) as stream:
                feed(stream, bytes(6_400))
                stream.finish()
                await finals(stream)
                sent = [message for message in vendor.sockets[-1]["messages"] if isinstance(message, int)]
                assert sent[:3] == [size] * min(3, 6_400 // size) + [6_400 % size] * (size == 2_560)


class TestHearing:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("answers", [True, False], ids=["", "unanswered"])
    @BOTH
    @pytest.mark.usefixtures("quick")
    async def test_every_word_of_many_utterances(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], answers: bool, seed: int
    ) -> None:
        vendor.answers_everything = answers
        rng = random.Random(seed)
        said = [rng.choices(WORDS, k=rng.randrange(1, 6)) for _ in range(5)]
        async with opened(connector, **options) as stream:
            for words in said:
                feed(stream, speak(words, tail_ms=rng.randrange(100, 800)), rng.choice((333, 640, 5_001)))
                stream.finish()
            assert [text.split() for text in await finals(stream, 5)] == said

    @BOTH
    async def test_half_a_sample_at_the_end_does_not_shift_what_follows(
        self, connector: DeepgramStt, options: dict[str, Any]
    ) -> None:
        async with opened(connector, **options) as stream:
            for words in ("alpha bravo", "charlie"):
                feed(stream, speak(words) + b"\x01")
                stream.finish()
                assert await finals(stream) == [words]

    @BOTH
    async def test_interims_grow_to_the_final(self, connector: DeepgramStt, options: dict[str, Any]) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, speak(SAID, tail_ms=700))
            found = await until(stream, lambda heard: heard[-1].text == SAID)
            assert not any(heard.final or heard.ended for heard in found)
            stream.finish()
            assert (await until(stream, lambda heard: heard[-1].final))[-1] == Heard(SAID, final=True)

    @pytest.mark.parametrize("answers", [True, False], ids=["answered", "unanswered"])
    @pytest.mark.parametrize("pcm", [b"", bytes(640), SILENCE_1_S * 2], ids=len)
    @EVERY_WAY
    @pytest.mark.usefixtures("quick")
    async def test_no_words_are_an_empty_final(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], pcm: bytes, answers: bool
    ) -> None:
        vendor.answers_everything = answers
        async with opened(connector, **options) as stream:
            for said in ("", SAID):
                feed(stream, speak(said) if said else pcm)
                stream.finish()
                assert await finals(stream) == [said]

    @BOTH
    async def test_an_unanswered_question_costs_less_than_the_deadline(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        vendor.answers_everything = False
        async with opened(connector, **options) as stream:
            feed(stream, SILENCE_1_S)
            stream.finish()
            began = asyncio.get_running_loop().time()
            assert await finals(stream) == [""]
            assert asyncio.get_running_loop().time() - began < DeepgramStt.deadlines.first_ms / 1000 - 0.1

    @pytest.mark.parametrize("answers", [True, False], ids=["answered", "unanswered"])
    @BOTH
    @pytest.mark.usefixtures("quick")
    async def test_reset_forgets(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], answers: bool
    ) -> None:
        vendor.answers_everything = answers
        async with opened(connector, **options) as stream:
            feed(stream, speak("bravo charlie"))
            stream.reset()
            stream.reset()
            feed(stream, bytes(6_400))
            stream.reset()
            feed(stream, speak(SAID))
            stream.finish()
            found = await until(stream, lambda heard: heard[-1].final)
        assert found[-1].text == SAID
        assert not any("bravo" in heard.text for heard in found)

    async def test_a_settled_segment_is_part_of_the_final(self, connector: DeepgramStt) -> None:
        async with opened(connector, endpointing=200) as stream:
            for words in ("alpha bravo", "charlie", "delta"):
                feed(stream, speak(words, tail_ms=300))
            stream.finish()
            found = await until(stream, lambda heard: heard[-1].final)
        assert found[-1].text == "alpha bravo charlie delta"

    @pytest.mark.usefixtures("quick")
    async def test_flux_may_lag_behind_what_it_was_sent(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        vendor.lag_bytes = 16_000
        async with opened(connector, **FLUX) as stream:
            for words in (SAID, "", "one two three"):
                feed(stream, speak(words, tail_ms=120))
                stream.finish()
                assert await finals(stream) == [words]
        asked = vendor.sockets[-1]["messages"].count({"type": "ForceEndTurn"})
        assert asked > 3

    @BOTH
    async def test_sessions_do_not_hear_each_other(self, connector: DeepgramStt, options: dict[str, Any]) -> None:
        async def one(words: str) -> list[str]:
            async with opened(connector, **options) as stream:
                feed(stream, speak(words))
                stream.finish()
                return await finals(stream)

        assert await asyncio.gather(*map(one, WORDS[:10])) == [[word] for word in WORDS[:10]]

    @EVERY_WAY
    async def test_closing_ends_what_is_heard(self, connector: DeepgramStt, options: dict[str, Any]) -> None:
        stream = await connector.open(DeepgramSttOptions(**options))
        feed(stream, speak(SAID))
        await stream.aclose()
        await stream.aclose()
        stream.feed(bytes(640))
        stream.finish()
        assert [heard async for heard in stream.heard() if heard.final] == []


def result(stream: NovaStream, text: str, start: float, end: float, **more: bool) -> None:
    """What nova heard between two places in the audio, s."""
    channel = {"alternatives": [{"transcript": text}]}
    message = {"type": "Results", "start": start, "duration": end - start, "channel": channel, **more}
    stream.take(json.dumps(message))


async def next_of(stream: SttStream, count: int) -> list[Heard]:
    """What is heard next."""
    heard = aiter(stream.heard())
    async with asyncio.timeout(5):
        return [await anext(heard) for _ in range(count)]


def turn_info(stream: FluxStream, event: str, text: str, end: float, **more: str) -> None:
    """What Flux says of the turn up to a place in the audio, s."""
    message = {"type": "TurnInfo", "event": event, "transcript": text, "audio_window_end": end, **more}
    stream.take(json.dumps(message))


class TestPlaces:
    """Deepgram says where in the audio it heard what. These streams have no socket, what they send waits."""

    @pytest.fixture
    def nova(self) -> NovaStream:
        return NovaStream(cast("Any", None), turns=False)

    async def test_what_comes_late_is_no_part_of_the_next_utterance(self, nova: NovaStream) -> None:
        feed(nova, SILENCE_1_S)
        nova.finish()
        result(nova, "alpha", 0.0, 1.0, is_final=True, from_finalize=True)
        feed(nova, SILENCE_1_S)
        result(nova, "alpha", 0.0, 1.0, is_final=True)
        result(nova, "bravo", 1.0, 1.5)
        assert await next_of(nova, 2) == [Heard("alpha", final=True), Heard("bravo", final=False)]

    async def test_what_was_heard_further_on_settles_what_was_before(self, nova: NovaStream) -> None:
        feed(nova, SILENCE_1_S)
        nova.finish()
        feed(nova, SILENCE_1_S)
        result(nova, "alpha", 0.0, 1.0, is_final=True)
        result(nova, "bravo", 1.0, 1.5)
        assert await next_of(nova, 2) == [Heard("alpha", final=True), Heard("bravo", final=False)]

    async def test_it_is_asked_twice_more_before_it_is_taken_to_have_nothing_to_add(self, nova: NovaStream) -> None:
        feed(nova, SILENCE_1_S)
        nova.finish()
        result(nova, "alpha", 0.0, 1.0, is_final=True)
        nova.idle(0.25)
        nova.idle(0.25)
        result(nova, "bravo", 1.0, 2.0, is_final=True, from_finalize=True)
        assert await next_of(nova, 1) == [Heard("alpha bravo", final=True)]
        feed(nova, SILENCE_1_S)
        nova.finish()
        result(nova, "charlie", 2.0, 3.0, is_final=True)
        for _ in range(3):
            nova.idle(0.25)
        assert await next_of(nova, 1) == [Heard("charlie", final=True)]

    async def test_words_that_stay_away_end_no_turn_whose_words_are_not_settled(self) -> None:
        nova = NovaStream(cast("Any", None), turns=True)
        feed(nova, SILENCE_1_S)
        stays_away = '{"type":"UtteranceEnd","channel":[0,1],"last_word_end":0.4}'
        result(nova, "alpha", 0.0, 0.5)
        nova.take(stays_away)
        result(nova, "alpha", 0.0, 0.6, is_final=True)
        nova.take(stays_away)
        result(nova, "bravo", 0.6, 0.9)
        assert await next_of(nova, 2) == [Heard("alpha", final=False, ended=True), Heard("bravo", final=False)]

    async def test_a_part_of_ever_more_turns_is_bounded(self) -> None:
        nova = NovaStream(cast("Any", None), turns=True)
        feed(nova, SILENCE_1_S)
        for number in range(150):
            result(nova, f"w{number}", float(number), number + 1.0, is_final=True)
        nova.finish()
        result(nova, "", 150.0, 150.5, is_final=True, from_finalize=True)
        (final,) = await next_of(nova, 1)
        assert final == Heard(" ".join(f"w{number}" for number in range(50, 150)), final=True)

    async def test_flux_is_believed_once_it_has_heard_all_that_was_spoken(self) -> None:
        flux = FluxStream(cast("Any", None), turns=False)
        feed(flux, b"\x00\x40" * 16_000 + SILENCE_1_S)
        flux.finish()
        turn_info(flux, "EndOfTurn", "alpha", 1.2, trigger="manual")
        assert await next_of(flux, 1) == [Heard("alpha", final=True)]

    async def test_flux_stays_eager_until_the_caller_goes_on(self) -> None:
        flux = FluxStream(cast("Any", None), turns=True)
        feed(flux, SILENCE_1_S)
        seen = []
        for event in ("Update", "EagerEndOfTurn", "Update", "TurnResumed", "Update"):
            turn_info(flux, event, "alpha", 0.1 + len(seen) / 10)
            seen += await next_of(flux, 1)
        assert [heard.eager for heard in seen] == [False, True, True, False, False]

    async def test_of_interims_that_nobody_fetched_the_last_is_kept(self, nova: NovaStream) -> None:
        feed(nova, SILENCE_1_S)
        for text in ("alpha", "alpha bravo", "alpha bravo charlie"):
            result(nova, text, 0.0, 0.2 * len(text.split()))
        assert await next_of(nova, 1) == [Heard("alpha bravo charlie", final=False)]

    async def test_flux_that_knows_of_no_turn_has_nothing_to_forget(self) -> None:
        flux = FluxStream(cast("Any", None), turns=False)
        feed(flux, SILENCE_1_S)
        flux.reset()
        flux.take('{"type":"Warning","code":"FORCE_END_TURN_NO_ACTIVE_TURN"}')
        feed(flux, SILENCE_1_S)
        turn_info(flux, "Update", "bravo", 1.5)
        assert await next_of(flux, 1) == [Heard("bravo", final=False)]

    async def test_an_answer_to_an_earlier_question_settles_nothing(self, nova: NovaStream) -> None:
        feed(nova, SILENCE_1_S)
        nova.finish()
        result(nova, "alpha", 0.0, 0.5, is_final=True, from_finalize=True)
        result(nova, "bravo", 0.5, 1.0, is_final=True, from_finalize=True)
        assert await next_of(nova, 1) == [Heard("alpha bravo", final=True)]


class TestTurns:
    @TURNS
    async def test_deepgram_ends_the_turns(self, connector: DeepgramStt, options: dict[str, Any]) -> None:
        async with opened(connector, **options) as stream:
            for words in ("alpha bravo", "charlie"):
                feed(stream, speak(words) + SILENCE_1_S)
            found = await until(stream, lambda heard: sum(one.ended for one in heard) == 2)
        assert [heard.text for heard in found if heard.ended] == ["alpha bravo", "charlie"]
        assert not any(heard.final or heard.eager for heard in found)

    @TURNS
    async def test_a_caller_who_falls_mute_in_mid_turn_has_finished(
        self, connector: DeepgramStt, options: dict[str, Any]
    ) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, speak(SAID, tail_ms=0))
            found = await until(stream, lambda heard: heard[-1].ended)
        assert found[-1].text == SAID

    @TURNS
    async def test_finish_gives_everything_since_the_last_final(
        self, connector: DeepgramStt, options: dict[str, Any]
    ) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, speak("alpha bravo") + SILENCE_1_S + speak("charlie"))
            stream.finish()
            assert await finals(stream) == ["alpha bravo charlie"]
            feed(stream, speak("delta"))
            stream.finish()
            assert await finals(stream) == ["delta"]

    async def test_an_eager_end_is_marked_and_taken_back(self, connector: DeepgramStt) -> None:
        async with opened(connector, **FLUX_TURNS, eager_eot_threshold=0.4) as stream:
            audio = speak("alpha bravo", tail_ms=280) + speak("charlie", lead_ms=0) + SILENCE_1_S
            found = []
            for at in range(0, len(audio), 2_560):
                stream.feed(audio[at : at + 2_560])
                await asyncio.sleep(0.01)
            found = await until(stream, lambda heard: heard[-1].ended)
        assert found[-1] == Heard("alpha bravo charlie", final=False, ended=True)

    async def test_eager_events(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        async with opened(connector, **FLUX_TURNS, eager_eot_threshold=0.4) as stream:
            listening = asyncio.create_task(until(stream, lambda heard: heard[-1].ended))
            audio = speak("alpha", tail_ms=280) + speak("bravo", lead_ms=0) + SILENCE_1_S
            for at in range(0, len(audio), 2_560):
                stream.feed(audio[at : at + 2_560])
                await asyncio.sleep(0.02)
            found = await listening
        states = [(heard.text, heard.eager, heard.ended) for heard in found if heard.text]
        told = [state for number, state in enumerate(states) if number == 0 or state != states[number - 1]]
        assert told == [
            ("alpha", False, False),
            ("alpha", True, False),
            ("alpha bravo", False, False),
            ("alpha bravo", True, False),
            ("alpha bravo", False, True),
        ]

    async def test_words_that_stay_away_end_a_noisy_turn(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        async with opened(connector, turns=True, endpointing=5_000) as stream:
            feed(stream, speak(SAID))
            stream.finish()
            assert await finals(stream) == [SAID]
            feed(stream, SILENCE_1_S * 2)
            assert (await until(stream, lambda heard: bool(heard)))[-1].text == ""


class TestAwake:
    @BOTH
    async def test_an_idle_socket_is_kept_open(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deepgram_listen, "KEEPALIVE_S", 0.2)
        vendor.idle_s = 0.7
        async with opened(connector, **options) as stream:
            await asyncio.sleep(1.2)
            feed(stream, speak(SAID))
            stream.finish()
            assert await finals(stream) == [SAID]
        sent = vendor.sockets[-1]["messages"]
        assert ({"type": "KeepAlive"} in sent) == (options is NOVA)

    @BOTH
    async def test_one_that_is_not_is_an_error(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        vendor.idle_s = 0.1
        async with opened(connector, **options) as stream:
            with pytest.raises(ProviderUnavailable, match="closed with 1011 NET-0001"):
                await until(stream, lambda heard: False)


BROKEN: list[tuple[dict[str, Any], type[ConnectorError], str]] = [
    ({how: after}, ProviderUnavailable, "provider_unavailable")
    for how in ("cut_after", "error_after")
    for after in (0, 2)
]


class TestFaults:
    @pytest.mark.parametrize(("faults", "kind", "code"), [*FAULTS, *BROKEN], ids=lambda value: str(value)[:40])
    @BOTH
    async def test_faults_are_told_apart(
        self,
        connector: DeepgramStt,
        vendor: DeepgramStandIn,
        options: dict[str, Any],
        faults: dict[str, Any],
        kind: type[ConnectorError],
        code: str,
    ) -> None:
        vendor.faults.set(**faults)
        error = await failure_of(connector, speak(SAID), **options)
        assert (type(error), error.code) == (kind, code), error

    @pytest.mark.parametrize(
        ("frame", "kind"),
        [
            (1000, ProviderUnavailable),
            (1008, ProviderRejected),
            (1011, ProviderUnavailable),
            (1013, ProviderUnavailable),
            (1003, ProviderGarbage),
            (1009, ProviderGarbage),
            ('{"type":"Error","code":"TOO_MANY_REQUESTS"}', ProviderLimited),
            ('{"type":"Error","code":"INVALID_AUTH"}', ProviderRejected),
            ('{"type":"Error","code":"UNPARSABLE_CLIENT_MESSAGE"}', ProviderRejected),
            ('{"type":"Error","description":"something"}', ProviderUnavailable),
        ],
    )
    @BOTH
    async def test_close_codes_and_error_frames(
        self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], frame: int | str, kind: type[ConnectorError]
    ) -> None:
        greeting = ['{"type":"Connected"}'] if options is FLUX else []
        async with WsBabbler(lambda: [*greeting, frame]) as babbler:
            connector = made(monkeypatch, babbler.url)
            assert type(await failure_of(connector, speak(SAID), **options)) is kind
            await connector.aclose()

    async def test_flux_greets_or_is_not_flux(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with WsBabbler(lambda: ['{"type":"TurnInfo"}']) as babbler:
            connector = made(monkeypatch, babbler.url)
            with pytest.raises(ProviderGarbage, match="no greeting"):
                await connector.open(DeepgramSttOptions(**FLUX))
            await connector.aclose()

    async def test_a_vendor_that_takes_nothing_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full:
            async def send_bytes(self, _: bytes) -> None:
                await asyncio.Event().wait()

            async def receive(self) -> None:
                await asyncio.Event().wait()

        monkeypatch.setattr(stt_socket, "SEND_S", 0.05)
        stream = NovaStream(cast("Any", Full()), turns=False)
        stream.run(AsyncExitStack())
        feed(stream, SILENCE_1_S)
        with pytest.raises(ProviderTimeout, match="taken nothing"):
            await next_of(stream, 1)
        await stream.aclose()

    def test_of_an_error_only_a_code_is_repeated(self) -> None:
        assert str(deepgram_listen.stated("NET-0001")).endswith("NET-0001")
        assert "4111" not in str(deepgram_listen.stated("my card number is 4111"))

    @SILENCES
    @EVERY_WAY
    async def test_silence_yields_nothing(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], faults: dict[str, Any]
    ) -> None:
        vendor.faults.set(**faults)
        assert await silence_of(connector, speak(SAID), **options) == []

    @pytest.mark.parametrize("items", [0, 1, 3])
    @BOTH
    @pytest.mark.usefixtures("quick")
    async def test_a_vendor_that_falls_silent_gives_no_final(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any], items: int
    ) -> None:
        """It must be taken for dead, not for one that has nothing to say: words would be lost."""
        vendor.faults.set(silent_after=items)
        found = await silence_of(connector, speak("alpha bravo charlie delta echo", tail_ms=700), 0.5, **options)
        assert not any(heard.final for heard in found)

    @EVERY_WAY
    async def test_messages_without_end_fill_no_memory(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        vendor.faults.set(endless=True)
        before = most_memory_mb()
        async with opened(connector, **options) as stream:
            feed(stream, speak(SAID))
            await asyncio.sleep(0.3)
        assert most_memory_mb() - before < 64

    async def test_a_cancelled_open_hangs_up_at_once(self, connector: DeepgramStt, vendor: DeepgramStandIn) -> None:
        vendor.faults.set(mute=True)
        for options in (NOVA, FLUX):
            began = asyncio.get_running_loop().time()
            with pytest.raises(ProviderTimeout):
                await connected(
                    connector.open(DeepgramSttOptions(**options)), Deadlines(connect_ms=100), "deepgram"
                )  # fmt: skip
            assert asyncio.get_running_loop().time() - began < 0.6

    @EVERY_WAY
    async def test_closing_a_dead_stream_is_quick(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        stream = await connector.open(DeepgramSttOptions(**options))
        vendor.faults.set(mute=True, slow_s=30.0)
        feed(stream, speak(SAID))
        stream.finish()
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        await stream.aclose()
        assert asyncio.get_running_loop().time() - began < 0.5

    @EVERY_WAY
    async def test_errors_hold_no_secret_and_nothing_of_what_was_said(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        vendor.script.text = "my card number is 4111"
        for faults in ({"error_after": 1}, {"cut_after": 1}, {"garbage": "types"}, {"garbage": "nan"}, {"status": 401}):
            vendor.faults.set(**faults)
            error: BaseException | None = await failure_of(connector, speak(SAID), **options)
            while error is not None:
                assert "4111" not in str(error) + repr(error)
                assert "canary" not in str(error) + repr(error)
                error = error.__cause__


class TestProbe:
    @EVERY_WAY
    async def test_a_probe_does_a_piece_of_work(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        await connector.probe(DeepgramSttOptions(**options))
        assert vendor.sockets[-1]["messages"] == [6_400, {"type": "CloseStream"}]
        for faults in ({"status": 503}, {"error_after": 0}, {"cut_after": 0}, {"garbage": "html"}):
            if options.get("model") and "status" not in faults:
                continue  # Flux says nothing to a silence, it hangs up
            vendor.faults.set(**faults)
            with pytest.raises(ConnectorError):
                await connector.probe(DeepgramSttOptions(**options))

    @EVERY_WAY
    async def test_a_mute_vendor_passes_no_probe(
        self, connector: DeepgramStt, vendor: DeepgramStandIn, options: dict[str, Any]
    ) -> None:
        vendor.faults.set(mute=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connector.probe(DeepgramSttOptions(**options)), 0.2)


@pytest.mark.fuzz
class TestGarbage:
    @BOTH
    async def test_anything_may_come(self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
        rng = random.Random(9)
        result = {"type": "Results", "start": 0.0, "duration": 0.2, "is_final": False, "speech_final": False}
        channel = {"alternatives": [{"transcript": "see you", "confidence": 0.9, "words": []}]}
        turn = {"type": "TurnInfo", "turn_index": 0, "audio_window_start": 0.0, "transcript": "see you", "words": []}
        good: list[dict[str, Any]] = [
            {"type": "Connected", "sequence_id": 0},
            {"type": "Warning", "code": "FORCE_END_TURN_NO_ACTIVE_TURN"},
            {**turn, "event": "StartOfTurn", "audio_window_end": 0.1},
            {**turn, "event": "EndOfTurn", "audio_window_end": 0.2, "trigger": "manual"},
        ]
        if options is NOVA:
            good = [
                {**result, "channel": channel},
                {"type": "SpeechStarted", "channel": [0], "timestamp": 0.1},
                {**result, "channel": channel, "is_final": True},
                {**result, "channel": {"alternatives": [{"transcript": ""}]}, "is_final": True, "from_finalize": True},
                {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 0.1},
            ]
        seen = set()
        async with WsBabbler(lambda: odd_frames(rng, good)) as babbler:
            connector = made(monkeypatch, babbler.url)
            for _ in range(EXAMPLES // 3):
                seen.add(await endures(connector, bytes(6_400), options))
            await connector.aclose()
        assert {"heard", "ProviderGarbage", "ProviderUnavailable"} <= seen
