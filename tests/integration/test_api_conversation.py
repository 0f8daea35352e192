"""What is said in a session, over HTTP: made to be said, silenced, read again with its times and its cost."""

import asyncio
import re
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshag.frames import Say
from meshag.subjects import text_input
from meshag.testing import TestCaller
from meshes import ask, call, create, join
from standins import eventually, exchange, journal, piped, saying, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

REPLY = "".join(instant.TOKENS)


def path(created: dict[str, Any], rest: str = "") -> str:
    return f"/sessions/{created['session_id']}{rest}"


async def told(mesh: Mesh, method: str, where: str, body: Any = None) -> tuple[int, Any]:
    return await asyncio.to_thread(call, mesh, method, where, body)


async def say(mesh: Mesh, created: dict[str, Any], text: str, **more: Any) -> None:
    status, body = await told(mesh, "POST", path(created, "/say"), {"text": text, **more})
    assert (status, body) == (202, {"session_id": created["session_id"], "accepted": True})


async def turns(mesh: Mesh, created: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The history once it has so many turns."""

    async def long_enough() -> list[dict[str, Any]] | None:
        found = (await told(mesh, "GET", path(created, "/history")))[1]["turns"]
        return found if len(found) >= count else None

    return list(await eventually(f"{count} turns", long_enough))


def replies(caller: TestCaller) -> list[str]:
    """What was said in each turn, in the order of the turns."""
    found: dict[int, str] = {}
    for event in caller.events:
        if event["type"] == "reply":
            found[event["turn"]] = found.get(event["turn"], "") + event["text"]
    return [found[turn] for turn in sorted(found)]


# -- say --------------------------------------------------------------------------------------------------------------


async def test_the_agent_says_what_it_is_told_to(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await caller.wait_for("ready")
        await say(mesh, created, "Your taxi is here. It waits at the door.")
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
        assert len(caller.audio) > 10_000
        assert caller.reply(1).strip() == "Your taxi is here. It waits at the door."
        await ask(caller, 7)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
    first, second = await turns(mesh, created, 2)
    assert (first["turn"], first["user"], first["interrupted"]) == (1, "", False)
    assert first["reply"].strip() == "Your taxi is here. It waits at the door."
    assert second["user"] == "Where is my order number 7?"


async def test_what_is_said_at_once_takes_the_place_of_the_answer_on_its_way(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await say(mesh, created, "Please leave the building.")
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
    first, second = await turns(mesh, created, 2)
    assert first["interrupted"] is True
    assert len(first["reply"]) < len(REPLY)
    assert (second["user"], second["reply"].strip()) == ("", "Please leave the building.")


async def test_what_is_in_no_hurry_waits_for_the_answer_and_for_its_predecessors(mesh: Mesh) -> None:
    created = create(mesh, saying("The answer."))
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await say(mesh, created, "First notice.", interrupt=False)
        await say(mesh, created, "Second notice.", interrupt=False)
        for turn in (1, 2, 3):
            await caller.wait_for("speech_ended", turn=turn, interrupted=False)
        assert [text.strip() for text in replies(caller)] == ["The answer.", "First notice.", "Second notice."]


async def test_an_announcement_needs_no_language_model(mesh: Mesh) -> None:
    created = create(mesh, piped("announcement"))
    async with join(created) as caller:
        await caller.wait_for("ready")
        await say(mesh, created, "The library closes in ten minutes.")
        await caller.wait_for("speech_ended", turn=1, interrupted=False)
        assert len(caller.audio) > 10_000


async def test_what_is_said_to_the_caller_is_a_turn_on_the_journal(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await caller.wait_for("ready")
        await say(mesh, created, "Hello.")
        await caller.wait_for("speech_ended", turn=1)
        said = [frame for frame in await journal(mesh, text_input(created["session_id"])) if isinstance(frame, Say)]
    assert [(frame.turn, frame.text, frame.source) for frame in said] == [(1, "Hello.", "transport")]


async def test_nobody_is_there_to_hear_it(mesh: Mesh) -> None:
    created = create(mesh)
    status, body = await told(mesh, "POST", path(created, "/say"), {"text": "Hello?"})
    assert (status, body["code"]) == (409, "nobody_listening")
    async with join(created) as caller:
        await caller.wait_for("ready")
    await eventually("idle", lambda: call(mesh, "GET", path(created))[1]["status"] == "idle")
    status, body = await told(mesh, "POST", path(created, "/say"), {"text": "Hello?"})
    assert (status, body["code"]) == (409, "nobody_listening")


@pytest.mark.parametrize("flow", ["text_chat", "transcription"])
async def test_a_pipeline_without_a_voice_cannot_say_anything(mesh: Mesh, flow: str) -> None:
    created = create(mesh, piped(flow))
    status, body = await told(mesh, "POST", path(created, "/say"), {"text": "Hello."})
    assert (status, body["code"], body["path"]) == (422, "say_not_possible", "config.pipeline.flow")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \n "}, "text"),
        ({"text": "x" * 4001}, "text"),
        ({"text": 1}, "text"),
        ({"text": "x", "interrupt": "yes"}, "interrupt"),
        ({"text": "x", "voice": "y"}, "voice"),
        ([], ""),
    ],
)
def test_what_cannot_be_said_is_refused(mesh: Mesh, body: Any, where: str) -> None:
    created = create(mesh)
    status, answer = call(mesh, "POST", path(created, "/say"), body)
    assert (status, answer["path"]) == (422, where)


# -- interrupt --------------------------------------------------------------------------------------------------------


async def test_the_agent_falls_silent_and_forgets_what_waited(mesh: Mesh) -> None:
    created = create(mesh)
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        await say(mesh, created, "And another thing.", interrupt=False)
        status, body = await told(mesh, "POST", path(created, "/interrupt"))
        assert (status, body["accepted"]) == (202, True)
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        await ask(caller, 2)
        await caller.wait_for("speech_ended", turn=2, interrupted=False)
        assert "another thing" not in " ".join(replies(caller))


async def test_silence_is_no_error_where_there_is_silence(mesh: Mesh) -> None:
    created = create(mesh)
    assert (await told(mesh, "POST", path(created, "/interrupt")))[0] == 202
    async with join(created) as caller:
        await caller.wait_for("ready")
        assert (await told(mesh, "POST", path(created, "/interrupt")))[0] == 202
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1, interrupted=False)


# -- the transcript ---------------------------------------------------------------------------------------------------


async def test_a_transcript_in_its_three_forms(mesh: Mesh) -> None:
    created = create(mesh, saying("It is <here> & now --> yours."))
    async with join(created) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)
    await turns(mesh, created, 1)
    status, body = await told(mesh, "GET", path(created, "/transcript"))
    assert status == 200
    caller_line, agent_line = body["lines"]
    assert (caller_line["speaker"], caller_line["text"]) == ("caller", "Where is my order number 1?")
    assert (agent_line["speaker"], agent_line["text"]) == ("agent", "It is <here> & now --> yours.")
    assert (
        0 <= caller_line["start_ms"] < caller_line["end_ms"] <= agent_line["start_ms"] < agent_line["end_ms"] < 60_000
    )
    assert agent_line["end_ms"] - agent_line["start_ms"] > 100
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["started_at"])

    status, headers, raw = exchange(mesh, "GET", path(created, "/transcript"), headers={"Accept": "text/vtt"})
    assert (status, headers["Content-Type"]) == (200, "text/vtt; charset=utf-8")
    text = raw.decode()
    assert text.startswith("WEBVTT\n\n1\n00:00:0")
    assert "<v Caller>Where is my order number 1?\n" in text
    assert "<v Agent>It is &lt;here&gt; &amp; now --&gt; yours.\n" in text
    assert text.count("-->") == 2

    status, headers, raw = exchange(mesh, "GET", path(created, "/transcript?format=text"))
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert raw.decode().splitlines()[1].endswith("] Agent: It is <here> & now --> yours.")


def test_a_transcript_in_another_form_is_not_to_be_had(mesh: Mesh) -> None:
    created = create(mesh)
    status, _, body = exchange(mesh, "GET", path(created, "/transcript"), headers={"Accept": "image/png"})
    assert (status, body["code"]) == (406, "not_acceptable")
    status, _, body = exchange(mesh, "GET", path(created, "/transcript?format=srt"))
    assert (status, body["path"]) == (422, "format")
    assert exchange(mesh, "GET", path(create(mesh), "/transcript"))[2]["lines"] == []


# -- what it has cost, and how quick it was ---------------------------------------------------------------------------


async def test_a_session_tells_its_latencies_and_its_cost(mesh: Mesh) -> None:
    created = create(mesh)
    untouched = (await told(mesh, "GET", path(created)))[1]
    assert untouched["turns"] == 0
    assert untouched["latency_ms"]["voice_to_voice"] == {"turns": 0, "last": None, "p50": None, "p95": None}
    assert untouched["usage"] == {"heard_ms": 0, "tool_calls": 0, "stt": {}, "llm": {}, "tts": {}}
    async with join(created) as caller:
        await caller.wait_for("ready")
        for turn in (1, 2):
            await ask(caller, turn)
            await caller.wait_for("speech_ended", turn=turn, interrupted=False)

    async def counted() -> Any:
        shown = (await told(mesh, "GET", path(created)))[1]
        used = shown["usage"]
        everything = used["heard_ms"] and used["tts"] and shown["latency_ms"]["voice_to_voice"]["turns"] == 2
        tokens = used["llm"].get("instant", {}).get("output_tokens") == 2 * len(instant.TOKENS)
        characters = used["tts"].get("instant", {}).get("characters", 0) >= 2 * len(REPLY.strip()) - 6
        return shown if everything and tokens and characters else None

    shown = await eventually("all is counted", counted)
    assert shown["turns"] == 2
    assert shown["usage"]["heard_ms"] == 2 * 7 * 20
    assert shown["usage"]["stt"]["instant"]["audio_ms"] == 2 * 7 * 20
    assert shown["usage"]["tts"]["instant"]["characters"] <= 2 * len(REPLY)
    laps = shown["latency_ms"]
    assert {hop: laps[hop]["turns"] for hop in laps} == dict.fromkeys(laps, 2)
    assert 0 <= laps["voice_to_voice"]["p50"] <= laps["voice_to_voice"]["p95"] < 20_000
    assert sum(laps[hop]["last"] for hop in ("stt", "llm", "tts", "transport")) <= laps["voice_to_voice"]["last"] + 4
