"""The documented session among its vendors: whoever is down, every turn is answered."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from conversations import QUICK, Conversation, all_closed, asked, created, mended, mesh_in, states
from meshag.embedded.mesh import Mesh
from meshes import join
from standins import eventually
from vendors.town import FALLBACK, PRIMARY, Town

pytestmark = [
    pytest.mark.integration,
    pytest.mark.models,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
]

BROKEN: dict[str, dict[str, Any]] = {
    "killed": {"refuse": True},
    "hung": {"mute": True},
    "dripping": {"drip_s": 0.9},
    "spewing garbage": {"garbage": "binary"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town() -> AsyncIterator[Town]:
    async with Town() as town:
        yield town


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_mesh(town: Town, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    async with mesh_in(town, tmp_path_factory.mktemp("failover")) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(whole_mesh: Mesh, town: Town) -> Mesh:
    """As new: every vendor is well, and known to be."""
    await mended(town, whole_mesh)
    return whole_mesh


async def test_a_conversation_of_twenty_turns_among_vendors_that_fail_in_turn(town: Town, mesh: Mesh) -> None:
    async with join(await created(mesh, turns=QUICK)) as caller:
        talk = Conversation(town, caller)
        for faults in BROKEN.values():
            assert talk.check(await talk.take_turn()) == {"stt": PRIMARY["stt"], "llm": PRIMARY["llm"]}
            for stage in ("stt", "llm", "tts"):
                town.break_primary(stage, **faults)
                served = talk.check(await talk.take_turn())
                if stage in served:
                    assert served[stage] == FALLBACK[stage]
                assert (await states(mesh))[stage][PRIMARY[stage]] == "open"
            served = talk.check(await talk.take_turn())  # all three are down, and known to be
            assert served == {"stt": FALLBACK["stt"], "llm": FALLBACK["llm"]}
            town.heal()
            await eventually("the primaries are used again", lambda: all_closed(mesh), timeout_s=40)
    assert talk.turn == 20
    secrets = ("sk-openai-secret", "sk-ant-secret", "dg-secret", "xi-secret", "azure-secret")
    written = "".join(path.read_text() for path in mesh.log_dir.glob("*.log"))
    assert "provider_open" in written
    assert not [secret for secret in secrets if secret in written]
    assert "Where is my order" not in written


async def test_when_everybody_is_down_the_caller_hears_an_apology_and_the_next_turn_is_answered(
    town: Town, mesh: Mesh
) -> None:
    session = await created(mesh, turns=QUICK)
    async with join(session) as caller:
        talk = Conversation(town, caller)
        talk.check(await talk.take_turn())
        for switch in (town.primaries["llm"], town.fallbacks["llm"]):
            switch.set(status=500)
        turn = await talk.take_turn()
        assert talk.caller.reply(2) == ""
        said = "".join(event["text"] for event in turn if event["type"] == "reply")
        assert said.startswith("I am sorry, I cannot answer right now.")
        assert [event["code"] for event in turn if event["type"] == "error"] == ["all_providers_failed"]
        assert talk.audio
        town.heal()
        talk.check(await talk.take_turn())

    async def turns() -> list[str]:
        _, body = await asked(mesh, "GET", f"/sessions/{session['session_id']}/history")
        return [turn["reply"].strip() for turn in body["turns"]]

    told = ["Order 1 left.", "", "Order 3 left."]
    await eventually("an apology is no part of what the model said", lambda: _equal(turns, told))


async def _equal(ask: Any, wanted: Any) -> bool:
    return bool(await ask() == wanted)


async def test_a_provider_is_switched_off_for_a_live_call_and_on_again(town: Town, mesh: Mesh) -> None:
    async with join(await created(mesh, turns=QUICK)) as caller:
        talk = Conversation(town, caller)
        assert talk.check(await talk.take_turn())["llm"] == "openai"
        for stage in ("stt", "llm"):
            status, body = await asked(mesh, "PUT", f"/providers/{stage}/openai", {"state": "off"})
            assert (status, body["state"]) == (200, "off")
        await asyncio.sleep(0.3)
        assert talk.check(await talk.take_turn()) == {"stt": "deepgram", "llm": "anthropic"}
        for stage in ("stt", "llm"):
            await asked(mesh, "PUT", f"/providers/{stage}/openai", {"state": "on"})
        await eventually("it may be asked", lambda: all_closed(mesh))
        await asyncio.sleep(0.3)
        assert talk.check(await talk.take_turn()) == {"stt": "openai", "llm": "openai"}
