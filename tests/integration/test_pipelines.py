"""Every kind of pipeline with a real conversation: what flows where the configuration says, and nowhere else."""

import asyncio

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ask, call, create, join
from standins import eventually, piped, saying, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

REPLY = "".join(instant.TOKENS)
SECOND_BYTES = 2 * instant.VOICE_HZ
"""The stand-in for a voice speaks a second for each sentence."""

TEXT_EVENTS = {"voice_started", "transcript", "turn_ended", "reply_started", "reply", "reply_ended"}


def owners(mesh: Mesh, session: str) -> set[str]:
    return set(call(mesh, "GET", f"/sessions/{session}")[1]["owners"])


async def test_voice_chat(mesh: Mesh) -> None:
    created = create(mesh, piped("voice_chat"))
    assert owners(mesh, created["session_id"]) == {"stt", "llm", "tts"}
    async with join(created) as caller:
        for turn in (1, 2):
            await ask(caller, turn)
            await caller.wait_for("speech_ended", turn=turn, interrupted=False)
            assert caller.reply(turn) == REPLY
            assert len(caller.audio) == turn * 3 * SECOND_BYTES
    assert [event["text"] for event in caller.of("turn_ended")] == [
        "Where is my order number 1?",
        "Where is my order number 2?",
    ]


async def test_voice_chat_without_transcription_shows_no_text(mesh: Mesh) -> None:
    created = create(mesh, piped("voice_chat"), enable_transcription=False)
    async with join(created) as caller:
        for turn in (1, 2):
            await ask(caller, turn)
            await caller.wait_for("speech_ended", turn=turn, interrupted=False)
    assert not TEXT_EVENTS & set(caller.kinds())
    assert len(caller.audio) == 6 * SECOND_BYTES


async def test_text_chat(mesh: Mesh) -> None:
    created = create(mesh, piped("text_chat"))
    assert owners(mesh, created["session_id"]) == {"llm"}
    async with join(created) as caller:
        for turn, text in ((1, "Where is my order?"), (2, "And the other one?")):
            await caller.type(text)
            await caller.wait_for("speech_ended", turn=turn, interrupted=False)
            assert caller.reply(turn) == REPLY
        await caller.speak(*[instant.speech_frame()] * 5)  # audio has nowhere to go and does no harm
        await caller.type("Still there?")
        await caller.wait_for("reply_ended", turn=3)
    assert not caller.audio
    assert not caller.of("error")
    _, body = call(mesh, "GET", f"/sessions/{created['session_id']}/history")
    assert [turn["user"] for turn in body["turns"]][:2] == ["Where is my order?", "And the other one?"]


async def test_text_chat_without_transcription_is_still_read(mesh: Mesh) -> None:
    created = create(mesh, piped("text_chat"), enable_transcription=False)
    async with join(created) as caller:
        await caller.type("Where is my order?")
        await caller.wait_for("reply_ended", turn=1)
        assert caller.reply(1) == REPLY


async def test_transcription(mesh: Mesh) -> None:
    created = create(mesh, piped("transcription"))
    assert owners(mesh, created["session_id"]) == {"stt"}
    async with join(created) as caller:
        for turn in (1, 2, 3):
            await ask(caller, turn)
            await caller.wait_for("turn_ended", turn=turn, text=f"Where is my order number {turn}?")
        finals = [event["text"] for event in caller.of("transcript") if event["final"]]
    assert finals == [f"Where is my order number {turn}?" for turn in (1, 2, 3)]
    assert [event["text"] for event in caller.of("transcript") if not event["final"]] == ["Where"] * 3
    assert not {"reply_started", "reply", "speech_started"} & set(caller.kinds())
    assert not caller.audio


async def test_text_typed_into_a_transcription_is_refused_in_words(mesh: Mesh) -> None:
    async with join(create(mesh, piped("transcription"))) as caller:
        await caller.type("Hello?")
        error = await caller.wait_for("error", code="text_not_taken")
        assert '{"from": "transport", "to": "llm", "stream": "text"}' in error["message"]
        assert "Hello" not in error["message"]
        await ask(caller, 1)
        await caller.wait_for("turn_ended", turn=1, text="Where is my order number 1?")


async def test_announcement(mesh: Mesh) -> None:
    created = create(mesh, piped("announcement"))
    assert owners(mesh, created["session_id"]) == {"tts"}
    async with join(created) as caller:
        await caller.type("The train to the coast leaves from another platform today. We are sorry for the trouble.")
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
        spoken = len(caller.audio)
        assert spoken >= SECOND_BYTES
        assert spoken % SECOND_BYTES == 0
        await caller.type("Mind the gap.")
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
        assert len(caller.audio) == spoken + SECOND_BYTES
    assert not {"reply", "transcript", "error"} & set(caller.kinds())


async def test_an_announcement_gives_way_to_the_next(mesh: Mesh) -> None:
    long = "This is a sentence that takes a second of your time. " * 20
    async with join(create(mesh, piped("announcement"))) as caller:
        await caller.type(long)
        await caller.wait_for("speech_started", turn=1)
        await caller.type("Stop. This is important.")
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
        assert len(caller.audio) < 10 * SECOND_BYTES


async def test_captions_beside_speech(mesh: Mesh) -> None:
    created = create(mesh, piped("captions"), enable_transcription=False)
    async with join(created) as caller:
        await ask(caller, 5)
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
    assert caller.of("turn_ended")[0]["text"] == "Where is my order number 5?"
    assert caller.reply(1) == REPLY
    assert len(caller.of("reply")) == len({event["n"] for event in caller.of("reply")}), "captions said twice"
    assert len(caller.of("turn_ended")) == len(caller.of("reply_ended")) == 1
    assert len(caller.audio) == 3 * SECOND_BYTES


async def test_text_typed_into_a_voice_chat_is_a_turn_like_another(mesh: Mesh) -> None:
    created = create(mesh, saying("I see.", "voice_chat"))
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
        await caller.type("And the second one?")
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
        await ask(caller, 3)
        await caller.wait_for("speech_ended", turn=3, interrupted=False)
        path = f"/sessions/{created['session_id']}/history"
        turns = await eventually("three turns", lambda: (t := call(mesh, "GET", path)[1]["turns"])[2:] and t)
    said = ["Where is my order number 1?", "And the second one?", "Where is my order number 3?"]
    assert [(turn["turn"], turn["user"]) for turn in turns] == list(enumerate(said, 1))
    assert len(caller.audio) == 3 * SECOND_BYTES


async def test_text_typed_while_the_agent_speaks_interrupts_it(mesh: Mesh) -> None:
    async with join(create(mesh, piped("voice_chat"))) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await caller.type("Never mind.")
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
        assert caller.reply(2) == REPLY


async def test_an_interrupt_silences_the_agent_and_the_next_turn_is_answered(mesh: Mesh) -> None:
    async with join(create(mesh, piped("voice_chat"))) as caller:
        await caller.send({"type": "interrupt"})  # nobody speaks: nothing happens
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await caller.send({"type": "interrupt"})
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        await asyncio.sleep(0.3)
        silent_at = len(caller.audio)
        await asyncio.sleep(0.7)
        assert len(caller.audio) == silent_at < 3 * SECOND_BYTES
        await ask(caller, 2)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)


async def test_a_caller_says_goodbye_and_comes_back(mesh: Mesh) -> None:
    created = create(mesh, piped("text_chat"))
    async with join(created) as caller:
        await caller.type("One")
        await caller.wait_for("speech_ended", turn=1)
        await caller.send({"type": "bye"})
        assert (await caller.wait_for("session_ended"))["reason"] == "bye"
        await eventually("closed", lambda: caller.closed)
        assert caller.socket.close_code == 1000
    async with join(created) as caller:
        await caller.type("Two")
        await caller.wait_for("speech_ended", turn=2)  # the turns are counted on
