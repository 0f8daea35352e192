"""Providers that fail in the middle of something: no word is lost, no sentence is left out or said twice."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from conversations import OUT_HZ, QUICK, RECORDINGS, Conversation, created, mended, mesh_in, models, states
from meshag.audio import read_wav
from meshag.connectors.contracts import GO_ON
from meshag.embedded.mesh import Mesh
from meshag.loudness import Loudness
from meshag.models import store
from meshag.models.catalogue import DEFAULT_STT, find
from meshag.settings import default_cache_dir
from meshes import join
from standins import eventually
from vendors import voice
from vendors.town import Town
from wording import words

pytestmark = [
    pytest.mark.integration,
    pytest.mark.models,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

REPLY = "Your van left. It travels by train. It is there at noon."
FIRST, SECOND, THIRD = re.findall(r"[^.]+\.", REPLY)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_town() -> AsyncIterator[Town]:
    async with Town() as town:
        yield town


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_mesh(whole_town: Town, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    path = tmp_path_factory.mktemp("midway")
    model = find(DEFAULT_STT)
    home = store.home(model, path / "cache")
    home.parent.mkdir(parents=True)
    home.symlink_to(store.home(model, default_cache_dir()))
    async with mesh_in(whole_town, path, {"stt": 1, "llm": 1, "tts": 2}) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def town(whole_town: Town) -> Town:
    return whole_town


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(whole_mesh: Mesh, town: Town) -> Mesh:
    """As new: every vendor is well, and known to be."""
    await eventually("every worker lives", lambda: asyncio.to_thread(all_alive, whole_mesh), timeout_s=60)
    await mended(town, whole_mesh)
    for vendor in (town.openai.llm, town.anthropic, town.elevenlabs, town.azure):
        vendor.requests.clear()
    town.azure.gain_db = town.elevenlabs.gain_db = 0.0
    return whole_mesh


def all_alive(mesh: Mesh) -> bool:
    mesh.tend()
    return all(service.child.poll() is None and mesh.is_ready(service) for service in mesh.services)


def level_db(pcm: bytes) -> float:
    loudness = Loudness(OUT_HZ)
    loudness.push(pcm)
    assert loudness.level_db is not None
    return loudness.level_db


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "repeats"),
    [("cut_after", True), ("cut_after", False), ("silent_after", False), ("error_after", True)],
    ids=lambda value: value if isinstance(value, str) else "who begins anew" if value else "who goes on",
)
async def test_another_model_goes_on_after_what_was_said(town: Town, mesh: Mesh, how: str, repeats: bool) -> None:
    async with join(await created(mesh, turns=QUICK)) as caller:
        talk = Conversation(town, caller)
        town.openai.llm.faults.set(**{how: 6})  # in the second sentence
        answering = asyncio.create_task(talk.take_turn(REPLY))
        await caller.wait_for("voice_started")
        rest = REPLY if repeats else f"{SECOND.strip()}{THIRD}"
        town.anthropic.reply = re.findall(r"\S+\s*", rest)
        turn = await answering
    assert models(turn) == ["openai", "anthropic"]
    assert (await states(mesh))["llm"]["openai"] == "open"  # although it begins every answer that a probe asks for
    assert " ".join(caller.reply(1).split()) == REPLY
    assert voice.words_in(talk.audio, OUT_HZ) == voice.codes(REPLY)
    told = json.dumps(town.anthropic.requests[-1]["body"]["messages"])
    assert FIRST in told
    assert GO_ON[:40] in told


# -- the voice --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut_after", "silent_after"])
async def test_another_voice_says_the_sentence_anew_and_the_rest(town: Town, mesh: Mesh, how: str) -> None:
    async with join(await created(mesh, turns=QUICK)) as caller:
        talk = Conversation(town, caller)
        town.elevenlabs.faults.set(**{how: 2})
        await talk.take_turn(REPLY)
    assert (await states(mesh))["tts"]["elevenlabs"] == "open"
    heard, said = voice.words_in(talk.audio, OUT_HZ), voice.codes(REPLY)
    assert heard[-len(said) :] == said
    begun = heard[: -len(said)]  # what was heard of the first sentence before its voice broke off
    assert begun == voice.codes(FIRST)[: len(begun)]
    assert len(begun) < len(voice.codes(FIRST))


@pytest.mark.parametrize("gain_db", [-10.0, 6.0])
async def test_another_voice_is_as_loud(town: Town, mesh: Mesh, gain_db: float) -> None:
    async with join(await created(mesh, turns=QUICK)) as caller:
        talk = Conversation(town, caller)
        await talk.take_turn(FIRST)
        usual_db = level_db(talk.audio)
        town.azure.gain_db = gain_db
        town.break_primary("tts", refuse=True)
        await talk.take_turn(REPLY)
        assert voice.words_in(talk.audio, OUT_HZ) == voice.codes(REPLY)
        assert abs(level_db(talk.audio) - usual_db) < 2.0


# -- the recogniser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dies", "falls silent"])
async def test_another_recogniser_hears_the_utterance_from_its_beginning(town: Town, mesh: Mesh, how: str) -> None:
    recording = "asterisk_en_vm-nobodyavail.wav"
    manifest = json.loads((RECORDINGS / "manifest.json").read_text())
    said = next(item["text"] for item in manifest["items"] if item["file"] == recording)
    session = await created(
        mesh, stt={"primary": "deepgram", "fallback": ["local"], "config": {}}, turns={"end_silence_ms": 1_200}
    )
    async with join(session) as caller:
        talk = Conversation(town, caller)
        if how == "falls silent":
            town.deepgram.faults.set(silent_after=1)
        answering = asyncio.create_task(talk.take_turn("I see.", pcm=read_wav(RECORDINGS / recording)[0]))
        if how == "dies":
            await caller.wait_for("voice_started")
            await asyncio.sleep(1.5)
            town.deepgram.faults.set(refuse=True)
            town.deepgram.cut()
        turn = await answering
    (heard,) = [event for event in turn if event["type"] == "transcript" and event["final"]]
    assert heard["provider"] == "local"
    assert (await states(mesh))["stt"]["deepgram"] == "open"
    wrong = set(words(said)) ^ set(words(heard["text"]))
    assert len(wrong) <= 2, heard["text"]
    assert words(heard["text"])[:4] == words(said)[:4]


# -- hedging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
async def test_the_second_starts_when_the_first_is_late(town: Town, mesh: Mesh, stage: str) -> None:
    patient = {"hedge_ms": 150, "deadlines": {"first_ms": 9_000, "between_ms": 9_000}}
    async with join(await created(mesh, turns=QUICK, **{stage: patient})) as caller:
        talk = Conversation(town, caller)
        town.primaries[stage].set(first_s=6.0)
        served = talk.check(await talk.take_turn())
        if stage in served:
            assert served[stage] == {"stt": "deepgram", "llm": "anthropic"}[stage]
        else:
            assert town.azure.requests
        assert (await states(mesh))[stage] == dict.fromkeys((await states(mesh))[stage], "closed")


# -- notices ----------------------------------------------------------------------------------------------------------


async def test_a_caller_who_waits_too_long_is_asked_for_patience(town: Town, mesh: Mesh) -> None:
    llm = {"deadlines": {"first_ms": 9_000, "notice_ms": 500}}
    async with join(await created(mesh, turns=QUICK, llm=llm)) as caller:
        talk = Conversation(town, caller)
        town.openai.llm.faults.set(first_s=1.5)
        turn = await talk.take_turn()
        talk.check(turn)
    said = [(event["text"], event["filler"]) for event in turn if event["type"] == "reply"]
    assert said[0] == ("I am sorry, one moment please. ", True)
    assert said[1:] == [("Order 1 left.", False)]


async def test_a_late_recogniser_has_the_caller_asked_for_patience_too(town: Town, mesh: Mesh) -> None:
    stt = {"deadlines": {"first_ms": 9_000, "notice_ms": 500}}
    async with join(await created(mesh, turns=QUICK, stt=stt)) as caller:
        talk = Conversation(town, caller)
        town.openai.stt.faults.set(first_s=1.5)
        turn = await talk.take_turn()
        talk.check(turn)
    said = [event["filler"] for event in turn if event["type"] == "reply"]
    assert said == [True, False]


# -- a worker dies: the last test, so that nobody waits until another one lives ----------------------------------------


async def test_a_stand_in_goes_on_as_loud_when_its_worker_dies(town: Town, mesh: Mesh) -> None:
    """Who takes over has never heard the voice that it stands in for, and finds that one well again."""
    own = {"voice": "Rachel", "stability": 0.31}
    async with join(await created(mesh, turns=QUICK, tts={"config": {"elevenlabs": own}})) as caller:
        talk = Conversation(town, caller)
        await talk.take_turn(FIRST)
        usual_db = level_db(talk.audio)
        town.azure.gain_db = -10.0
        town.break_primary("tts", refuse=True)
        answering = asyncio.create_task(talk.take_turn(f"{REPLY} {REPLY}"))
        await caller.wait_for("speech_started", turn=2)
        await mended(town, mesh)
        asked_before = len(town.elevenlabs.texts)
        worker = caller.of("ready")[0]["owners"]["tts"]
        (victim,) = [one for one in mesh.services if one.stage == "tts" and mesh._ready_body(one)["worker"] == worker]
        victim.child.send(signal.SIGKILL)
        await answering
        assert [event["stage"] for event in caller.of("owner_changed")] == ["tts"]
    assert voice.words_in(talk.audio, OUT_HZ) == voice.codes(f"{REPLY} {REPLY}")
    assert town.elevenlabs.texts[asked_before:] == []
    last_sentence = talk.audio[-2 * OUT_HZ :]
    assert abs(level_db(last_sentence) - usual_db) < 2.0
