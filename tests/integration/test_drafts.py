"""An answer begun when the recogniser thinks that the caller has probably finished: used, or thrown away unheard."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from conversations import created, mesh_in
from meshag.embedded.mesh import Mesh
from meshes import join
from standins import eventually
from vendors.spoken import speak
from vendors.town import Town

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

FLUX = {"primary": "deepgram", "fallback": [], "config": {"deepgram": {"model": "flux-general-en"}}}
EAGER = {**FLUX, "config": {"deepgram": {"model": "flux-general-en", "eager_eot_threshold": 0.4}}}
PROVIDER_TURNS = {"vad": "provider"}
ANSWER = "Yes, we are open."
LONG_SILENCE_MS = 1_500


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town() -> AsyncIterator[Town]:
    async with Town() as town:
        town.deepgram.script.text = None  # what is spoken is what is heard
        town.answer(ANSWER)
        yield town


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(town: Town, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    async with mesh_in(town, tmp_path_factory.mktemp("drafts")) as mesh:
        yield mesh


async def drafts(mesh: Mesh) -> dict[str, int]:
    """What has become of the drafts so far."""

    def read() -> str:
        port = mesh.find("llm").port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    found = re.findall(r'meshag_drafts_total\{result="(\w+)"\} (\d+)', await asyncio.to_thread(read))
    return {result: int(count) for result, count in found}


async def test_the_draft_is_the_answer_when_the_caller_has_indeed_finished(town: Town, mesh: Mesh) -> None:
    before = await drafts(mesh)
    town.openai.llm.requests.clear()
    async with join(await created(mesh, stt=EAGER, turns=PROVIDER_TURNS)) as caller:
        await caller.play(speak("alpha bravo", tail_ms=LONG_SILENCE_MS))
        await caller.wait_for("speech_ended", turn=1)
        assert caller.reply(1).strip() == ANSWER
    assert await drafts(mesh) == {**before, "used": before.get("used", 0) + 1}
    assert len(town.openai.llm.requests) == 1, "the draft was asked for, and nothing beside it"


async def test_a_caller_who_goes_on_is_answered_anew_and_hears_nothing_of_the_draft(town: Town, mesh: Mesh) -> None:
    before = await drafts(mesh)
    town.openai.llm.requests.clear()
    async with join(await created(mesh, stt=EAGER, turns=PROVIDER_TURNS)) as caller:
        town.answer("Too early.")
        await caller.play(speak("alpha bravo", tail_ms=280))
        await eventually("the draft was asked for", lambda: bool(town.openai.llm.requests))
        town.answer(ANSWER)
        await caller.play(speak("charlie", lead_ms=0, tail_ms=LONG_SILENCE_MS))
        await caller.wait_for("speech_ended", turn=1)
        assert [event["text"] for event in caller.events if event["type"] == "turn_ended"] == ["alpha bravo charlie"]
        assert caller.reply(1).strip() == ANSWER
    after = await drafts(mesh)
    assert after["dropped"] - before.get("dropped", 0) >= 1
    asked = [request["body"]["messages"][-1]["content"] for request in town.openai.llm.requests]
    assert (asked[0], asked[-1]) == ("alpha bravo", "alpha bravo charlie")


async def test_nothing_is_begun_early_when_nobody_asked_for_it(town: Town, mesh: Mesh) -> None:
    before = await drafts(mesh)
    async with join(await created(mesh, stt=FLUX, turns=PROVIDER_TURNS)) as caller:
        await caller.play(speak("alpha bravo", tail_ms=LONG_SILENCE_MS))
        await caller.wait_for("speech_ended", turn=1)
    assert await drafts(mesh) == before
