"""What one worker finds out about a provider, all know; and it comes back by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from meshag.bus.connection import Bus
from meshag.connectors import breakers as module
from meshag.connectors.breakers import Breakers, opens
from meshag.connectors.contracts import LlmConnector, LlmEvent, LlmRequest, Options, ReplyDone, TextDelta
from meshag.connectors.registry import Registry
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import (
    ConnectorError,
    MeshError,
    ModelError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from meshag.ids import new_worker_id
from meshag.sessions.fleet import Fleet, Presence
from standins import eventually

pytestmark = pytest.mark.integration


class VendorOptions(Options):
    model: str = "small"


class Vendor(LlmConnector):
    """One that answers as it is told."""

    options = VendorOptions

    def __init__(self) -> None:
        self.probes: list[str] = []
        self.trouble: Exception | None = ProviderUnavailable("still down")
        self.answers: list[str] = []
        self.breaks_off = True

    async def probe(self, options: Options) -> None:
        assert isinstance(options, VendorOptions)
        self.probes.append(options.model)
        if self.trouble is not None:
            raise self.trouble

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        assert isinstance(request.options, VendorOptions)
        self.answers.append(request.options.model)
        yield TextDelta("One, two, three")
        if self.breaks_off:
            raise ProviderUnavailable("cut")
        yield ReplyDone("stop")


class OurOwn(Vendor):
    shared = False


class Worker:
    """As much of a worker as breakers need."""

    def __init__(self, bus: Bus, fleet: Fleet, vendor: Vendor, name: str) -> None:
        self.id = new_worker_id()
        self.vendor = vendor
        registry = Registry()
        registry.get = lambda stage, provider: vendor  # type: ignore[method-assign]
        self.breakers = Breakers(bus, fleet, registry, "llm", self.id)
        self.name = name


@pytest.fixture
async def workers(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Makes a worker, with a connection of its own, of the stage llm."""
    monkeypatch.setattr(module, "FIRST_WAIT_MS", 50)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    async with AsyncExitStack() as stack:
        made: list[Worker] = []

        async def make(vendor: Vendor | None = None) -> Worker:
            bus = await Bus.connect(servers.nats_url, name="test")
            stack.push_async_callback(bus.close)
            fleet = Fleet(bus, 150)
            worker = Worker(bus, fleet, vendor or Vendor(), f"w{len(made)}")
            made.append(worker)
            for other in made:  # everybody has heard of everybody
                for one in made:
                    other.breakers._fleet._seen[one.id] = (Presence(one.id, "llm", 0, 100), 0)
            await worker.breakers.start()
            stack.push_async_callback(worker.breakers.aclose)
            return worker

        first = await make()
        await first.breakers._bus.purge("provider.health.llm.vendor")
        await first.breakers._bus.purge("provider.switch.llm.vendor")
        await first.breakers.aclose()
        made.clear()
        yield make


def state(worker: Worker) -> str:
    return worker.breakers.state("llm", "vendor")


async def test_one_call_fails_and_everybody_knows(workers: Any) -> None:
    one, two = await workers(), await workers()
    one.breakers.failed("vendor", ProviderUnavailable("down"), b"{}")
    assert state(one) == "open"
    await eventually("the other has heard of it", lambda: state(two) == "open")
    told = two.breakers.told("llm", "vendor")
    assert (told["state"], told["code"]) == ("open", "provider_unavailable")
    three = await workers()
    assert state(three) == "open"  # from the stream: it was not there when it was said


async def test_one_worker_probes_with_the_options_of_the_failed_call_until_it_works_again(workers: Any) -> None:
    pair = [await workers(), await workers()]
    pair[0].breakers.failed("vendor", ProviderTimeout("late"), b'{"model": "large"}')
    await eventually("it is probed", lambda: sum(len(one.vendor.probes) for one in pair) >= 2)
    prober = min(pair, key=lambda one: one.id)
    assert set(prober.vendor.probes) == {"large"}
    assert not max(pair, key=lambda one: one.id).vendor.probes
    assert [state(one) for one in pair] == ["open", "open"]
    prober.vendor.trouble = None
    await eventually("both use it again", lambda: [state(one) for one in pair] == ["closed", "closed"])


@pytest.mark.parametrize("how", ["it broke off", "its answer was empty"])
async def test_one_that_broke_off_is_used_again_when_it_has_given_a_whole_answer(workers: Any, how: str) -> None:
    one, two = await workers(), await workers()
    for worker in (one, two):
        worker.vendor.trouble = None  # it begins as if nothing were wrong
    failure = ProviderGarbage("nothing", code="provider_empty") if "empty" in how else ProviderUnavailable("cut")
    failure.midway = "broke" in how
    one.breakers.failed("vendor", failure, b'{"model": "large"}')
    prober = min((one, two), key=lambda worker: worker.id)
    await eventually("it is asked for an answer, and again", lambda: len(prober.vendor.answers) >= 2)
    assert set(prober.vendor.answers) == {"large"}
    assert [state(one), state(two)] == ["open", "open"]
    prober.vendor.breaks_off = False
    await eventually("both use it again", lambda: [state(one), state(two)] == ["closed", "closed"])
    assert prober.vendor.probes == []


async def test_a_relapse_is_probed_more_rarely(workers: Any) -> None:
    one = await workers()
    waits = []
    for _ in range(3):
        one.vendor.trouble = None
        one.breakers.failed("vendor", ProviderUnavailable("down"), b"{}")
        waits.append(one.breakers._health["llm", "vendor"].wait_ms)
        await eventually("it is used again", lambda: state(one) == "closed")
    assert waits == [50, 100, 200]


async def test_a_limit_is_respected_for_as_long_as_the_provider_says(workers: Any) -> None:
    one = await workers()
    one.vendor.trouble = None
    one.breakers.failed("vendor", ProviderLimited("too many", retry_after_s=0.6), b"{}")
    await asyncio.sleep(0.3)
    assert one.vendor.probes == []
    await eventually("it is used again", lambda: state(one) == "closed")


async def test_an_operator_has_the_last_word(workers: Any) -> None:
    one, two = await workers(), await workers()
    changes: list[tuple[str, str]] = []
    two.breakers.on_change(lambda stage, provider: changes.append((stage, provider)))
    one.breakers.switch("llm", "vendor", on=False)
    await eventually("everybody knows", lambda: state(two) == "off")
    assert changes == [("llm", "vendor")]
    assert two.breakers.told("llm", "vendor")["code"] == "operator"
    two.breakers.failed("vendor", ProviderUnavailable("down"), b"{}")
    assert state(two) == "off"
    late = await workers()
    assert state(late) == "off"
    one.breakers.switch("llm", "vendor", on=True)
    await eventually("it may be asked again", lambda: state(late) == "closed")


async def test_an_operator_closes_what_has_failed(workers: Any) -> None:
    one, two = await workers(), await workers()
    one.breakers.failed("vendor", ProviderLimited("too many", retry_after_s=60), b"{}")
    await eventually("everybody knows", lambda: state(two) == "open")
    two.breakers.switch("llm", "vendor", on=True)
    await eventually("it may be asked again", lambda: state(one) == "closed")
    one.breakers.failed("vendor", ProviderUnavailable("down"), b"{}")
    assert one.breakers._health["llm", "vendor"].wait_ms == 50  # no relapse: the operator's word was a new beginning


async def test_what_is_not_the_vendors_fault_opens_nothing(workers: Any) -> None:
    one = await workers()
    for error in (ProviderRejected("no such model"), ModelError("no file"), MeshError("ours")):
        assert not opens(error)
        one.breakers.failed("vendor", error, b"{}")
        assert state(one) == "closed"
    for error in (
        ProviderTimeout("x"),
        ProviderUnavailable("x"),
        ProviderLimited("x"),
        ProviderGarbage("x"),
        ConnectorError("x"),
        ProviderRejected("x", code="provider_unauthorized"),
    ):
        assert opens(error), error
    own = await workers(OurOwn())
    own.breakers.failed("vendor", ProviderTimeout("a busy machine"), b"{}")
    assert state(own) == "closed"


async def test_a_name_that_is_no_subject_is_kept_to_oneself(workers: Any) -> None:
    one, two = await workers(), await workers()
    one.breakers.failed("ven.dor", ProviderUnavailable("down"), b"{}")
    one.breakers.failed("vendor", ProviderUnavailable("down"), b"{}")
    await eventually("the good one is heard", lambda: state(two) == "open")
    assert two.breakers.state("llm", "ven.dor") == "closed"
