"""What every vendor's language-model connector promises, tried on the vendor's stand-in.

A test module makes it its own: `class TestOpenAi(VendorLlmContract)` beside the fixtures `vendor` and `connect`.
"""

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

from meshag import clock
from meshag.connectors.contracts import (
    GO_ON,
    Deadlines,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Message,
    ReplyDone,
    TextDelta,
    Thinking,
    Tool,
    ToolCall,
)
from meshag.connectors.failover import LEAST_CHARS_PER_S, watched, weight
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors import fuzz
from vendors.writing import TOKENS, ModelStandIn, Writing

KEY = "sk-test-0123456789"
SYSTEM = "You are a friendly voice assistant."
SECRET = "my card number is 4929"
WEATHER = Tool("get_weather", "The weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
CALLS = [
    {"name": "get_weather", "arguments": {"city": "Paris"}},
    {"name": "get_weather", "arguments": {"city": "Rome"}},
]
BRISK = Deadlines(first_ms=250, between_ms=250)

Connect = Callable[[str], LlmConnector]
"""A connector that talks to the server at this address, with `KEY`."""


def request_of(connector: LlmConnector, *texts: str, **more: Any) -> LlmRequest:
    """The texts are the user's and the assistant's in turn."""
    messages = [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts or (SECRET,))]
    options = connector.options(**more.pop("options", {}))
    return LlmRequest(SYSTEM, [*messages, *more.pop("then", ())], options, **more)


async def all_of(connector: LlmConnector, request: LlmRequest | None = None) -> list[LlmEvent]:
    async with asyncio.timeout(10):
        return [event async for event in connector.reply(request or request_of(connector))]


async def events_of(connector: LlmConnector, request: LlmRequest | None = None) -> list[LlmEvent]:
    """All but the signs of life."""
    return [event for event in await all_of(connector, request) if not isinstance(event, Thinking)]


def text_of(events: Iterable[LlmEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def answer_of(events: Iterable[bytes]) -> bytes:
    """A sound HTTP answer that streams these events."""
    body = b"".join(events)
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def events_from(connect: Connect, events: Iterable[bytes]) -> list[LlmEvent]:
    """What a connector makes of a stream of these."""
    answer = answer_of(events)
    async with fuzz.Babbler(lambda: answer) as server:
        connector = connect(server.url)
        try:
            return await events_of(connector)
        finally:
            await connector.aclose()


def stream_of(vendor: ModelStandIn, tokens: list[str], calls: list[dict[str, Any]], reason: str) -> list[bytes]:
    """A good answer, event by event."""
    listed = [{"id": f"call_{n}", "name": name, "arguments": words} for n, (name, words) in enumerate(calls)]
    writing = Writing("m", tokens, listed, reason, 7, {"stream_options": {"include_usage": True}})
    return [*vendor.opening(writing), *vendor.items(writing), *vendor.closing(writing), *vendor.done]


FAULTS: dict[str, tuple[dict[str, Any], tuple[type[ConnectorError], ...]]] = {
    "400": ({"status": 400}, (ProviderRejected,)),
    "401": ({"status": 401}, (ProviderRejected,)),
    "404": ({"status": 404}, (ProviderRejected,)),
    "429": ({"status": 429}, (ProviderLimited,)),
    "500": ({"status": 500}, (ProviderUnavailable,)),
    "503": ({"status": 503}, (ProviderUnavailable,)),
    "529": ({"status": 529}, (ProviderUnavailable,)),
    "302": ({"status": 302}, (ProviderGarbage,)),
    "refuse": ({"refuse": True}, (ProviderUnavailable,)),
    "binary": ({"garbage": "binary"}, (ProviderGarbage,)),
    "html": ({"garbage": "html"}, (ProviderGarbage,)),
    "json": ({"garbage": "json"}, (ProviderGarbage,)),
    "nan": ({"garbage": "nan"}, (ProviderGarbage,)),
    "types": ({"garbage": "types"}, (ProviderGarbage,)),
    "long_line": ({"garbage": "long_line"}, (ProviderGarbage,)),
    "empty": ({"garbage": "empty"}, (ProviderGarbage,)),
    "cut": ({"cut_after": 3}, (ProviderUnavailable,)),
    "cut_at_once": ({"cut_after": 0}, (ProviderUnavailable,)),
    "error": ({"error_after": 3}, (ProviderUnavailable,)),
}

SILENCES: dict[str, dict[str, Any]] = {
    "mute": {"mute": True},
    "headers_only": {"headers_only": True},
    "no_tokens": {"silent_after": 0},
    "two_tokens": {"silent_after": 2},
    "drip": {"drip_s": 0.01},
}


class VendorLlmContract:
    """`vendor`: a running stand-in with `KEY`. `connect`: see `Connect`."""

    documented: ClassVar[list[dict[str, Any]]] = [{}]
    """Options that a session's configuration may hold."""

    @pytest.fixture
    async def connector(self, vendor: ModelStandIn, connect: Connect) -> AsyncIterator[LlmConnector]:
        made = connect(vendor.url)
        yield made
        await made.aclose()

    # -- answers ------------------------------------------------------------------------------------------------------

    async def test_deltas_then_one_done(self, connector: LlmConnector) -> None:
        *deltas, done = await events_of(connector)
        assert deltas == [TextDelta(token) for token in TOKENS]
        assert isinstance(done, ReplyDone)
        assert done.reason == "stop"
        assert done.output_tokens == len(TOKENS)
        assert done.input_tokens > 5

    async def test_empty_tokens_are_no_items(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.reply = ["", "a", "", "", "b", ""]
        assert (await events_of(connector))[:-1] == [TextDelta("a"), TextDelta("b")]

    async def test_the_documented_options_are_taken(self, connector: LlmConnector) -> None:
        for options in self.documented:
            assert text_of(await events_of(connector, request_of(connector, options=options)))

    async def test_a_cut_answer_says_so(self, connector: LlmConnector) -> None:
        *deltas, done = await events_of(connector, request_of(connector, options={"max_tokens": 5}))
        assert len(deltas) == 5
        assert isinstance(done, ReplyDone)
        assert done.reason == "length"

    async def test_it_names_its_model(self, connector: LlmConnector) -> None:
        assert connector.model(connector.options()) == connector.options().model  # type: ignore[attr-defined]
        assert connector.model(connector.options(model="m-1")) == "m-1"

    @pytest.mark.parametrize("text", ["\x00\x1b", "broken \ud83d", "<|im_end|>", "😀 你好", "x" * 200_000])
    async def test_odd_text_does_no_harm(self, connector: LlmConnector, text: str) -> None:
        call = ToolCall("c1", "f", '{"a":"\ud83d"}')
        then = [Message("assistant", text, [call]), Message("tool", text, call_id="c1")]
        request = request_of(connector, text, then=then, said=f"{text}.")
        assert isinstance((await events_of(connector, request))[-1], ReplyDone)

    async def test_a_usage_report_that_cannot_be_is_none(self, vendor: ModelStandIn, connect: Connect) -> None:
        good = stream_of(vendor, ["a"], [], "stop")
        for wrong in (b"-7", b"99999999999999999999"):
            events = [event.replace(b'tokens":7', b'tokens":' + wrong) for event in good]
            done = (await events_from(connect, events))[-1]
            assert isinstance(done, ReplyDone)
            assert done.input_tokens == 0

    # -- going on -----------------------------------------------------------------------------------------------------

    async def test_it_is_told_to_go_on_after_what_was_said(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        await events_of(connector, request_of(connector, "Hello?", said="Sure, I can"))
        *_, said, wish = vendor.requests[-1]["body"]["messages"]
        assert (said["role"], wish["role"]) == ("assistant", "user")
        assert "Sure, I can" in str(said["content"])
        assert GO_ON in str(wish["content"])

    # -- functions ----------------------------------------------------------------------------------------------------

    async def test_it_calls_functions(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.calls = CALLS
        events = await events_of(connector, request_of(connector, tools=[WEATHER]))
        assert events[:-1] == [
            ToolCall("call_000", "get_weather", '{"city":"Paris"}'),
            ToolCall("call_001", "get_weather", '{"city":"Rome"}'),
        ]
        assert isinstance(events[-1], ReplyDone)
        assert events[-1].reason == "tools"

    async def test_a_call_comes_when_it_is_complete(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.calls = CALLS
        vendor.faults.set(silent_after=8)  # in the middle of the second one
        async with aclosing(connector.reply(request_of(connector, tools=[WEATHER]))) as reply:  # type: ignore[type-var]
            async with asyncio.timeout(5):
                calls = (event.id async for event in reply if isinstance(event, ToolCall))
                assert await anext(calls) == "call_000"

    async def test_a_call_without_arguments(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.calls = [{"name": "get_weather", "arguments": ""}]
        call, _ = await events_of(connector, request_of(connector, tools=[WEATHER]))
        assert call == ToolCall("call_000", "get_weather", "")

    async def test_every_piece_of_arguments_is_a_sign_of_life(
        self, vendor: ModelStandIn, connector: LlmConnector
    ) -> None:
        vendor.calls = [{"name": "get_weather", "arguments": '{"city":"Paris"}'}]  # in pieces of five
        *signs, call, done = await all_of(connector, request_of(connector, tools=[WEATHER]))
        assert signs == [Thinking(5), Thinking(5), Thinking(5), Thinking(1)]
        assert (type(call), type(done)) == (ToolCall, ReplyDone)

    async def test_arguments_may_take_longer_than_the_wait_for_one_item(
        self, vendor: ModelStandIn, connector: LlmConnector
    ) -> None:
        vendor.calls = [{"name": "get_weather", "arguments": {"city": "x" * 50}}]
        vendor.faults.set(slow_s=0.12)
        deadlines = Deadlines(first_ms=1_000, between_ms=1_000)
        began_s = clock.monotonic_s()
        reply = connector.reply(request_of(connector, tools=[WEATHER]))
        heard = watched(reply, deadlines, "p", weigh=weight, least_per_s=LEAST_CHARS_PER_S)
        *_, call, done = [event async for event in heard]
        assert (type(call), type(done)) == (ToolCall, ReplyDone)
        assert clock.monotonic_s() - began_s > 1.2

    @pytest.mark.parametrize(("begun", "awaited"), [("", "first"), ("{", "next")])
    @pytest.mark.parametrize("piece", [b'""', b'"     "'], ids=["empty", "blank"])
    async def test_empty_and_blank_pieces_of_arguments_are_silence(
        self, vendor: ModelStandIn, connector: LlmConnector, begun: str, awaited: str, piece: bytes
    ) -> None:
        vendor.calls = [{"name": "get_weather", "arguments": begun + " " * 2_000}]
        streamed = vendor.items
        vendor.items = lambda writing: (  # type: ignore[method-assign]
            event.replace(b'"     "', piece) for event in streamed(writing)
        )
        vendor.faults.set(slow_s=0.02)
        reply = connector.reply(request_of(connector, tools=[WEATHER]))
        with pytest.raises(ProviderTimeout, match=f"no {awaited} item"):
            async with asyncio.timeout(5):
                _ = [event async for event in watched(reply, BRISK, "p")]

    async def test_functions_answer_it(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.calls = CALLS
        calls = [ToolCall("c1", "get_weather", '{"city":"Paris"}'), ToolCall("c2", "get_weather", "")]
        then = [
            Message("assistant", "Let me look.", calls),
            Message("tool", "Rain", call_id="c1"),
            Message("tool", "", call_id="c2"),
        ]
        for tools in ([WEATHER], []):
            events = await events_of(connector, request_of(connector, "Weather?", then=then, tools=tools))
            assert text_of(events) == "".join(TOKENS)
        assert "Rain" in str(vendor.requests[-1]["body"]["messages"])

    async def test_calls_of_another_vendor_are_understood(self, connector: LlmConnector) -> None:
        calls = [ToolCall("functions.f:0/" + "x" * 90, "get_weather", "no JSON"), ToolCall("é", "get_weather", "[1]")]
        answers = [Message("tool", "Rain", call_id=call.id) for call in calls]
        request = request_of(connector, "Weather?", then=[Message("assistant", "", calls), *answers], tools=[WEATHER])
        assert text_of(await events_of(connector, request))

    async def test_a_call_that_was_cut_is_none(self, vendor: ModelStandIn, connect: Connect) -> None:
        stream = stream_of(vendor, [], [("f", '{"a":1}'), ("g", '{"a')], "length")
        call, done = await events_from(connect, stream)
        assert (call.id, done.reason) == ("call_0", "length")  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "calls", [[("f", '"' + "x" * 70_000)], [("f", "{}")] * 40, [("", "{}")], [("f" * 5000, "{}")]]
    )
    async def test_calls_have_bounds(self, vendor: ModelStandIn, connect: Connect, calls: Any) -> None:
        with pytest.raises(ProviderGarbage):
            await events_from(connect, stream_of(vendor, [], calls, "calls"))

    # -- an end at any time -------------------------------------------------------------------------------------------

    async def test_closing_stops_the_generation(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.faults.set(endless=True, slow_s=0.005)
        reply = connector.reply(request_of(connector))
        assert await anext(reply) == TextDelta(TOKENS[0])
        await reply.aclose()  # type: ignore[attr-defined]
        await self.stopped(vendor)

    @pytest.mark.parametrize("fault", [{"headers_only": True}, {"endless": True, "slow_s": 0.005}, {"silent_after": 2}])
    async def test_cancelling_stops_the_generation(
        self, vendor: ModelStandIn, connector: LlmConnector, fault: dict[str, Any]
    ) -> None:
        vendor.faults.set(**fault)
        task = asyncio.create_task(events_of(connector))
        async with asyncio.timeout(5):
            while not vendor.streams:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.stopped(vendor)

    async def stopped(self, vendor: ModelStandIn) -> None:
        async with asyncio.timeout(5):
            while vendor.streams:
                await asyncio.sleep(0.005)

    async def test_the_next_call_finds_the_connection_open(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        for _ in range(6):
            await events_of(connector)
        assert len({request["peer"] for request in vendor.requests}) <= 3  # one, but for a busy machine

    async def test_nothing_is_asked_before_the_first_item_is(
        self, vendor: ModelStandIn, connector: LlmConnector
    ) -> None:
        reply = connector.reply(request_of(connector))
        await asyncio.sleep(0.02)
        await reply.aclose()  # type: ignore[attr-defined]
        assert vendor.requests == []

    async def test_conversations_run_side_by_side(self, connector: LlmConnector) -> None:
        answers = await asyncio.gather(*(events_of(connector) for _ in range(20)))
        assert {text_of(events) for events in answers} == {"".join(TOKENS)}

    async def test_an_endless_answer_is_given_up_by_whoever_hears_it(
        self, vendor: ModelStandIn, connector: LlmConnector
    ) -> None:
        vendor.faults.set(endless=True)
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with aclosing(connector.reply(request_of(connector))) as reply:  # type: ignore[type-var]
            for _ in range(5_000):
                await anext(reply)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
        await self.stopped(vendor)

    async def test_a_line_without_end_is_not_read(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.faults.set(garbage="long_line", endless=True)
        with pytest.raises(ProviderGarbage):
            await events_of(connector)
        await self.stopped(vendor)

    async def test_what_follows_the_end_does_not_matter(self, vendor: ModelStandIn, connect: Connect) -> None:
        answer = answer_of(stream_of(vendor, ["a"], [], "stop")).replace(b"Content-Length: ", b"Content-Length: 9")
        async with fuzz.Babbler(lambda: answer) as server:
            connector = connect(server.url)
            assert [type(event) for event in await events_of(connector)] == [TextDelta, ReplyDone]
            await connector.aclose()

    # -- faults -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_fault_is_told_as_what_it_is(
        self, vendor: ModelStandIn, connector: LlmConnector, fault: str
    ) -> None:
        faults, kinds = FAULTS[fault]
        vendor.faults.set(**faults)
        events = []
        with pytest.raises(ConnectorError) as caught:
            async with asyncio.timeout(10):
                events += [event async for event in connector.reply(request_of(connector))]
        assert isinstance(caught.value, kinds)
        assert type(caught.value) is not ConnectorError
        for secret in (KEY, KEY[:8], SECRET, "4929"):
            assert secret not in str(caught.value) + repr(caught.value)
        vendor.faults.set()
        assert text_of(await events_of(connector)) == "".join(TOKENS)

    async def test_what_came_before_a_fault_was_given(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.faults.set(error_after=3)
        reply = connector.reply(request_of(connector))
        events = [await anext(reply) for _ in range(3)]
        assert events == [TextDelta(token) for token in TOKENS[:3]]
        with pytest.raises(ProviderUnavailable):
            await anext(reply)

    async def test_a_wrong_key_is_everybodys_trouble(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.key = "another"
        with pytest.raises(ProviderRejected) as caught:
            await events_of(connector)
        assert caught.value.code == "provider_unauthorized"

    async def test_a_limit_says_when_to_ask_again(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        vendor.faults.set(status=429, retry_after="7")
        with pytest.raises(ProviderLimited) as caught:
            await events_of(connector)
        assert caught.value.retry_after_s == 7

    async def test_nobody_there(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        await vendor.stop()
        with pytest.raises(ProviderUnavailable):
            await events_of(connector)

    @pytest.mark.parametrize("silence", SILENCES)
    async def test_silence_is_silence(self, vendor: ModelStandIn, connector: LlmConnector, silence: str) -> None:
        vendor.faults.set(**SILENCES[silence])
        with pytest.raises(ProviderTimeout):
            async for _ in watched(connector.reply(request_of(connector)), BRISK, "x"):
                pass
        if silence != "mute":
            await self.stopped(vendor)

    # -- around it ----------------------------------------------------------------------------------------------------

    async def test_a_probe_asks_for_as_little_as_possible(self, vendor: ModelStandIn, connector: LlmConnector) -> None:
        await connector.probe(connector.options(temperature=0.5, max_tokens=500))
        body = vendor.requests[-1]["body"]
        assert body["max_tokens"] == 1
        assert body["temperature"] == 0.5
        vendor.faults.set(status=503)
        with pytest.raises(ProviderUnavailable):
            await connector.probe(connector.options())

    async def test_closing_twice_does_no_harm(self, connect: Connect, vendor: ModelStandIn) -> None:
        unused = connect(vendor.url)
        await unused.aclose()
        await unused.aclose()

    def test_the_key_is_in_no_repr(self, connect: Connect) -> None:
        made = connect("http://127.0.0.1:9")
        assert KEY not in repr(made) + str(made.availability())

    # -- noise --------------------------------------------------------------------------------------------------------

    @pytest.mark.fuzz
    async def test_noise_ends_in_an_error_of_ours_or_a_reply(self, vendor: ModelStandIn, connect: Connect) -> None:
        calls = [("f", '{"city":"Paris"}'), ("g", "{}")]
        good = [
            stream_of(vendor, TOKENS[:5], [], "stop"),
            stream_of(vendor, [], calls, "calls"),
            [*stream_of(vendor, TOKENS[:2], [], "length"), vendor.failure("", SECRET)],
        ]
        answers: list[bytes] = []
        told: set[str] = set()
        replies = 0
        async with fuzz.Babbler(lambda: answers[-1]) as server:
            connector = connect(server.url)
            for number in range(fuzz.EXAMPLES):
                rng = random.Random(number)
                body = b"".join(fuzz.odd_events(rng, rng.choice(good)))
                if rng.random() < 0.1:
                    body = fuzz.odd_bytes(rng, body)
                answers[:] = [fuzz.odd_http(rng, body, "text/event-stream")]
                try:
                    events = await events_of(connector)
                except ConnectorError as error:
                    told.add(str(error))
                except Exception as error:
                    raise AssertionError(f"example {number}: {error!r}") from error
                else:
                    replies += 1
                    assert isinstance(events[-1], ReplyDone), number
                    assert all(isinstance(e, ToolCall) or (isinstance(e, TextDelta) and e.text) for e in events[:-1])
            await connector.aclose()
        assert fuzz.EXAMPLES / 10 < replies < fuzz.EXAMPLES * 0.9
        assert not [words for words in told if SECRET in words or KEY in words]
