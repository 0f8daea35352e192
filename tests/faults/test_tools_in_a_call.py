"""The model calls functions in the middle of a call: slow ones are bridged, and none acts twice, whoever dies."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from conversations import UTTERANCE, Conversation, created, mended, mesh_in
from meshag.embedded.mesh import Mesh
from meshes import join
from standins import eventually
from vendors.town import Town

pytestmark = [
    pytest.mark.faults,
    pytest.mark.models,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

QUESTION = UTTERANCE
"""0.6 s of somebody speaking."""

BRISK = {"end_silence_ms": 300}


class Shop:
    """A function of somebody's own, over HTTP. It acts once for every key."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.orders: dict[str, Any] = {}
        self.delay_s = 0.0
        self.url = ""

    async def order(self, request: web.Request) -> web.Response:
        key, what = request.headers["Idempotency-Key"], await request.json()
        self.calls.append((key, what))
        self.orders.setdefault(key, what)
        await asyncio.sleep(self.delay_s)
        return web.json_response({"ordered": what, "number": len(self.orders)})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_town() -> AsyncIterator[Town]:
    async with Town() as town:
        yield town


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_shop() -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.add_routes([web.post("/order", shop.order)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield shop
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_mesh(
    whole_town: Town, whole_shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mesh]:
    """One for all: the test that kills one of its two models' workers leaves the other."""
    path, hosts = tmp_path_factory.mktemp("tools"), whole_shop.url.removeprefix("http://")
    async with mesh_in(whole_town, path, {"stt": 1, "llm": 2, "tts": 1}, MESHAG_TOOL_HOSTS=hosts) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def shop(whole_shop: Shop) -> Shop:
    whole_shop.calls.clear()
    whole_shop.orders.clear()
    whole_shop.delay_s = 0.0
    return whole_shop


@pytest_asyncio.fixture(loop_scope="module")
async def town(whole_town: Town) -> Town:
    called(whole_town)
    for vendor in (whole_town.openai.llm, whole_town.anthropic):
        vendor.requests.clear()
    return whole_town


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(whole_mesh: Mesh, town: Town) -> Mesh:
    """As new: every vendor is well, and known to be."""
    await mended(town, whole_mesh)
    return whole_mesh


def order(shop: Shop, **more: Any) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
    tool = {"name": "order", "description": "Order something.", "parameters": parameters}
    return [{**tool, "http": {"url": f"{shop.url}/order"}, "say": "Let me order that.", **more}]


def called(town: Town, *arguments: Any) -> None:
    """From now on every model calls the function before it answers."""
    calls = [{"name": "order", "arguments": one} for one in arguments]
    town.openai.llm.calls = town.anthropic.calls = calls


def answers(town: Town) -> list[Any]:
    """What the model was told of the functions that it called, last."""
    messages = town.openai.llm.requests[-1]["body"]["messages"]
    return [json.loads(message["content"]) for message in messages if message["role"] == "tool"]


async def test_a_function_is_called_and_its_answer_is_told(town: Town, mesh: Mesh, shop: Shop) -> None:
    called(town, {"what": "tea"}, {"what": "cake"}, {"wrong": 1})
    async with join(await created(mesh, turns=BRISK, tools=order(shop))) as caller:  # type: ignore[arg-type]
        talk = Conversation(town, caller)
        talk.check(await talk.take_turn(pcm=QUESTION))
        assert sorted(what["what"] for _, what in shop.calls) == ["cake", "tea"]
        told = answers(town)
        assert [answer.get("ordered") for answer in told] == [{"what": "tea"}, {"what": "cake"}, None]
        assert "error" in told[2]
        talk.check(await talk.take_turn(pcm=QUESTION))
    assert len({key for key, _ in shop.calls}) == 4  # each call of each turn has a key of its own


async def test_a_slow_function_is_bridged(town: Town, mesh: Mesh, shop: Shop) -> None:
    called(town, {"what": "tea"})
    shop.delay_s = 0.7
    async with join(await created(mesh, turns=BRISK, tools=order(shop, say_after_ms=200))) as caller:  # type: ignore[arg-type]
        talk = Conversation(town, caller)
        turn = await talk.take_turn(pcm=QUESTION)
        talk.check(turn)
    said = [(event["text"], event["filler"]) for event in turn if event["type"] == "reply"]
    assert said == [("Let me order that. ", True), ("Order 1 left.", False)]


async def test_arguments_that_are_long_in_coming_are_no_silence(town: Town, mesh: Mesh, shop: Shop) -> None:
    """The model streams them, piece by piece, for longer than it may be silent."""
    called(town, {"what": "tea " * 15})
    town.openai.llm.faults.set(slow_s=0.1)
    deadlines = {"first_ms": 1_000, "between_ms": 1_000, "notice_ms": 20_000}
    session = await created(mesh, turns=BRISK, llm={"deadlines": deadlines}, tools=order(shop))  # type: ignore[arg-type]
    async with join(session) as caller:
        talk = Conversation(town, caller)
        asking = asyncio.create_task(talk.take_turn(pcm=QUESTION))
        await eventually("the function is called", lambda: shop.calls)
        town.openai.llm.faults.set()
        assert talk.check(await asking)["llm"] == "openai"
    assert town.anthropic.requests == []
    assert [what for _, what in shop.calls] == [{"what": "tea " * 15}]


async def test_a_model_that_calls_and_calls_is_made_to_answer(town: Town, mesh: Mesh, shop: Shop) -> None:
    called(town, *[{"what": f"tea {n}"} for n in range(6)])
    session = await created(mesh, tools=order(shop), tools_per_turn=2)  # type: ignore[arg-type]
    async with join(session) as caller:
        talk = Conversation(town, caller)
        talk.check(await talk.take_turn(pcm=QUESTION))
    assert len(shop.orders) == 2
    assert [("error" in answer) for answer in answers(town)] == [False, False, True, True, True, True]


async def test_a_worker_dies_while_a_function_runs_and_it_acts_once(town: Town, mesh: Mesh, shop: Shop) -> None:
    called(town, {"what": "tea"})
    shop.delay_s = 3.0
    async with join(await created(mesh, turns=BRISK, tools=order(shop, say=""))) as caller:  # type: ignore[arg-type]
        talk = Conversation(town, caller)
        answering = asyncio.create_task(talk.take_turn(pcm=QUESTION))
        await eventually("the function is called", lambda: shop.calls)
        owner = (await caller.wait_for("ready"))["owners"]["llm"]
        alive = {mesh._ready_body(service).get("worker"): service for service in mesh.services}
        shop.delay_s = 0.1
        alive[owner].child.kill()
        talk.check(await answering)
        assert [event["stage"] for event in caller.of("owner_changed")] == ["llm"]
    assert len(shop.calls) == 2
    assert len(shop.orders) == 1
    assert shop.calls[0] == shop.calls[1]


async def test_a_model_breaks_off_after_a_function_has_acted_and_it_is_not_called_again(
    town: Town, mesh: Mesh, shop: Shop
) -> None:
    called(town, {"what": "tea"})
    shop.delay_s = 0.5
    async with join(await created(mesh, turns=BRISK, tools=order(shop))) as caller:  # type: ignore[arg-type]
        talk = Conversation(town, caller)
        answering = asyncio.create_task(talk.take_turn(pcm=QUESTION))
        await eventually("the function is called", lambda: shop.calls)
        town.break_primary("llm", status=503)
        assert talk.check(await answering)["llm"] == "anthropic"
    assert len(shop.calls) == 1
    told = json.dumps(town.anthropic.requests[-1]["body"]["messages"])
    assert "tool_result" in told
    assert "ordered" in told
