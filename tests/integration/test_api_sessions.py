"""Sessions over HTTP: made, shown, changed, extended, ended."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshag.ids import new_session_id
from meshes import ask, call, create, join, start_mesh
from standins import eventually, exchange, journal, owned, piped, saying, stored, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
REPLY = "".join(instant.TOKENS)


def page_request() -> Any:
    """The request with everything, as the documents and the issue have it."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    blocks = re.findall(r"^```json request\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return next(json.loads(block) for block in blocks if "elevenlabs" in block)


def show(mesh: Mesh, created: dict[str, Any]) -> dict[str, Any]:
    status, body = call(mesh, "GET", f"/sessions/{created['session_id']}")
    assert status == 200, body
    return body


def patch(mesh: Mesh, created: dict[str, Any], body: Any) -> tuple[int, Any]:
    return call(mesh, "PATCH", f"/sessions/{created['session_id']}/config", body)


# -- made -------------------------------------------------------------------------------------------------------------


def test_absent_vendors_are_refused_with_what_is_there_instead(mesh: Mesh) -> None:
    status, body = call(mesh, "POST", "/sessions/with-config", page_request())
    assert status == 422
    absent = {problem["path"]: problem for problem in body["problems"] if problem["code"] == "providers_absent"}
    assert set(absent) == {f"config.connectors.{stage}" for stage in ("stt", "llm", "tts", "transport")}
    assert "websocket" in absent["config.connectors.transport"]["fix"]
    for stage in ("stt", "llm", "tts"):
        assert "instant" in absent[f"config.connectors.{stage}"]["fix"]


def test_absent_vendors_do_no_harm_where_a_fallback_can_work(mesh: Mesh) -> None:
    asked = page_request()
    for stage in ("stt", "llm", "tts"):
        asked["config"]["connectors"][stage]["fallback"].append("instant")
    status, body = call(mesh, "POST", "/sessions/with-config", asked)
    assert status == 422
    assert {problem["path"] for problem in body["problems"]} == {
        "config.connectors.transport",
        "config.connectors.transport.primary",
    }
    assert "websocket" in body["fix"]

    asked["config"]["connectors"]["transport"]["fallback"] = ["websocket"]
    asked["config"]["turns"] = {"vad": "provider"}
    status, body = call(mesh, "POST", "/sessions/with-config", asked)
    assert status == 201, body
    assert set(body) == {"session_id", "room_url", "token", "config_stored"}
    assert body["config_stored"] is True
    session = body["session_id"]
    assert body["room_url"] == f"{mesh.url.replace('http', 'ws', 1)}/sessions/{session}/stream"
    shown = show(mesh, body)
    assert shown["session_name"] == "my-ai-session"
    assert shown["config"]["connectors"]["llm"]["config"]["openai"]["model"] == "gpt-4o"


async def test_what_is_left_out_has_defaults(mesh: Mesh) -> None:
    created = create(mesh)
    shown = show(mesh, created)
    assert [edge["to"] for edge in shown["config"]["pipeline"]["flow"]] == ["stt", "llm", "tts", "transport"]
    assert shown["config"]["connectors"]["transport"]["primary"] == "websocket"
    assert 3500 < shown["expires_in_s"] <= 3600
    status, body = call(mesh, "POST", "/sessions/with-config", {"config": {}})
    # `local` needs models that this run may not have; with them the session is there, without them the fix says how
    assert status == 201 or (status == 422 and "meshag models pull" in json.dumps(body)), body


# -- shown ------------------------------------------------------------------------------------------------------------


def test_a_session_is_listed_and_shown(mesh: Mesh) -> None:
    created = create(mesh, session_name="Berlin")
    other = create(mesh)
    _, listed = call(mesh, "GET", "/sessions")
    found = {entry["session_id"]: entry for entry in listed["sessions"]}
    assert found[created["session_id"]]["session_name"] == "Berlin"
    assert other["session_id"] in found
    _, newest = call(mesh, "GET", "/sessions?limit=1")
    assert [entry["session_id"] for entry in newest["sessions"]] == [other["session_id"]]
    shown = show(mesh, created)
    assert shown["version"] == 1
    assert set(shown["owners"]) == {"stt", "llm", "tts"}
    for owner in shown["owners"].values():
        assert owner["alive"] is True
        assert owner["epoch"] == 1
        assert re.fullmatch("[a-z2-7]{13}", owner["worker"])


async def test_a_connected_session_is_live_and_has_a_transport(mesh: Mesh) -> None:
    created = create(mesh)
    assert show(mesh, created)["status"] == "created"
    async with join(created) as caller:
        await caller.wait_for("ready")
        await eventually("live", lambda: show(mesh, created)["status"] == "live")
        assert show(mesh, created)["owners"]["transport"]["epoch"] == 1
        first = caller.events[0]
    assert first["type"] == "ready"
    assert first["rate"] == 16_000
    assert first["out_rate"] == 24_000
    assert set(first["owners"]) == {"stt", "llm", "tts"}
    await eventually("idle", lambda: show(mesh, created)["status"] == "idle")
    async with join(created) as caller:
        await caller.wait_for("ready")
        assert caller.events[0]["type"] == "ready"
        assert show(mesh, created)["owners"]["transport"]["epoch"] == 2


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1e3", "1_0", "%2B5", "%D9%A1"])
def test_a_limit_that_is_none(mesh: Mesh, limit: str) -> None:
    status, body = call(mesh, "GET", f"/sessions?limit={limit}")
    assert (status, body["path"]) == (422, "limit")


async def test_the_history_of_an_untouched_session_is_empty_and_then_grows(mesh: Mesh) -> None:
    created = create(mesh, saying("I am here.", "text_chat"))
    path = f"/sessions/{created['session_id']}/history"
    assert call(mesh, "GET", path) == (200, {"session_id": created["session_id"], "turns": []})
    async with join(created) as caller:
        await caller.type("Are you there?")
        await caller.wait_for("speech_ended", turn=1)
        await eventually("stored", lambda: call(mesh, "GET", path)[1]["turns"])
    (turn,) = call(mesh, "GET", path)[1]["turns"]
    assert (turn["user"], turn["reply"].strip(), turn["interrupted"]) == ("Are you there?", "I am here.", False)


# -- extended ---------------------------------------------------------------------------------------------------------


def test_extending_changes_the_life_of_all_that_belongs_to_it(mesh: Mesh) -> None:
    created = create(mesh, ttl_s=100)
    session = created["session_id"]
    with stored(mesh) as kept:
        keys = list(kept.scan_iter(f"session:{session}:*"))
        assert len(keys) >= 5  # config, state, three leases
        assert all(0 < kept.ttl(key) <= 100 for key in keys)
        status, body = call(mesh, "POST", f"/sessions/{session}/extend", {"ttl_s": 5000})
        assert (status, body) == (200, {"session_id": session, "expires_in_s": 5000})
        assert all(4900 < kept.ttl(key) <= 5000 for key in keys), {key: kept.ttl(key) for key in keys}
    assert show(mesh, created)["expires_in_s"] > 4900


@pytest.mark.parametrize("body", [{}, {"ttl_s": 9}, {"ttl_s": 604_801}, {"ttl_s": "60"}, {"ttl_s": True}, [], 60])
def test_a_life_that_cannot_be(mesh: Mesh, body: Any) -> None:
    created = create(mesh, ttl_s=100)
    status, answer = call(mesh, "POST", f"/sessions/{created['session_id']}/extend", body)
    assert (status, answer["path"]) == (422, "ttl_s" if isinstance(body, dict) else "")
    assert show(mesh, created)["expires_in_s"] <= 100


async def test_a_live_call_keeps_what_was_extended(mesh: Mesh) -> None:
    created = create(mesh, ttl_s=10)
    async with join(created) as caller:
        await caller.wait_for("ready")
        call(mesh, "POST", f"/sessions/{created['session_id']}/extend", {"ttl_s": 5000})
        await asyncio.sleep(5)  # the call refreshes every third of ten seconds
        assert show(mesh, created)["expires_in_s"] > 4900


# -- changed ----------------------------------------------------------------------------------------------------------


async def test_a_changed_prompt_holds_from_the_next_turn_without_a_restart(mesh: Mesh) -> None:
    config = saying("I was told: {system} And here I go on for a little while longer.", "text_chat")
    config["connectors"]["llm"]["config"]["instant"]["delay_ms"] = 30
    created = create(mesh, config | {"system_prompt": "Count sheep."})
    owners = show(mesh, created)["owners"]
    async with join(created) as caller:
        await caller.type("One")
        await caller.wait_for("reply_started", turn=1)
        status, body = patch(mesh, created, {"config": {"system_prompt": "Count goats."}})
        assert (status, body["version"], body["config"]["system_prompt"]) == (200, 2, "Count goats.")
        await caller.wait_for("speech_ended", turn=1)
        await asyncio.sleep(0.5)
        await caller.type("Two")
        await caller.wait_for("speech_ended", turn=2)
        patch(mesh, created, {"config": {"connectors": {"llm": {"config": {"instant": {"reply": "Just this."}}}}}})
        await asyncio.sleep(0.5)
        await caller.type("Three")
        await caller.wait_for("speech_ended", turn=3)
    assert "Count sheep." in caller.reply(1)
    assert "Count goats." in caller.reply(2)
    assert caller.reply(3).strip() == "Just this."
    assert {stage: show(mesh, created)["owners"][stage] for stage in owners} == owners


async def test_a_changed_flow_brings_in_a_stage_at_the_next_turn(mesh: Mesh) -> None:
    created = create(mesh, saying("Good evening.", "text_chat"))
    async with join(created) as caller:
        await caller.type("One")
        await caller.wait_for("speech_ended", turn=1)
        assert not caller.audio
        spoken = piped("captions")["pipeline"]
        status, body = patch(mesh, created, {"config": {"pipeline": spoken}})
        assert status == 200, body
        await asyncio.sleep(0.5)
        await caller.type("Two")  # the turn at which it begins to hold: stt and tts come now
        await caller.wait_for("reply_ended", turn=2)
        await eventually("an owner", lambda: {"stt", "tts"} <= set(show(mesh, created)["owners"]))
        await asyncio.sleep(0.5)
        await caller.type("Three")
        await caller.wait_for("speech_ended", turn=3, interrupted=False)
    assert len(caller.audio) >= 2 * 24_000


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"config": {"system_promt": "x"}}, "config.system_promt"),
        ({"config": {"connectors": {"llm": {"primary": "gone"}}}}, "config.connectors.llm"),
        ({"config": {"connectors": {"llm": {"config": {"instant": {"nonsense": 1}}}}}}, "config.connectors.llm.config"),
        ({"config": {"pipeline": {"flow": []}}}, "config.pipeline.flow"),
        ({"system_prompt": "not in its place"}, "system_prompt"),
        ({"ttl_s": 3}, "ttl_s"),
        ([], ""),
        (b"{", ""),
    ],
)
def test_a_change_that_cannot_be_leaves_the_session_as_it_was(mesh: Mesh, body: Any, path: str) -> None:
    created = create(mesh)
    before = show(mesh, created)
    status, answer = patch(mesh, created, body)
    assert status in (400, 422)
    assert any(problem["path"].startswith(path) for problem in answer["problems"]), answer
    after = show(mesh, created)
    assert {**after, "expires_in_s": 0} == {**before, "expires_in_s": 0}


def test_a_change_of_nothing_is_none_and_a_change_of_the_life_counts(mesh: Mesh) -> None:
    created = create(mesh, ttl_s=100)
    assert patch(mesh, created, {})[1]["version"] == 1
    assert patch(mesh, created, {"ttl_s": 4000, "session_name": "longer"})[1]["version"] == 2
    shown = show(mesh, created)
    assert shown["session_name"] == "longer"
    assert shown["expires_in_s"] > 3900


async def test_changes_at_the_same_time_are_all_kept(mesh: Mesh) -> None:
    created = create(mesh)
    fields = ["start_ms", "end_silence_ms", "min_interrupt_ms", "preroll_ms"]
    bodies = [{"config": {"turns": {field: 123}}} for field in fields]
    answers = await asyncio.gather(*(asyncio.to_thread(patch, mesh, created, body) for body in bodies))
    assert sorted(body["version"] for _, body in answers) == [2, 3, 4, 5]
    turns = show(mesh, created)["config"]["turns"]
    assert [turns[field] for field in fields] == [123] * 4


# -- its caller's token -----------------------------------------------------------------------------------------------


async def test_another_token_lets_the_caller_in_again(mesh: Mesh) -> None:
    created = create(mesh)
    status, body = call(mesh, "POST", f"/sessions/{created['session_id']}/token")
    assert status == 201
    async with join(created | {"token": body["token"]}) as caller:
        await caller.wait_for("ready")


# -- ended ------------------------------------------------------------------------------------------------------------


async def test_the_end_reaches_the_caller_and_leaves_nothing(mesh: Mesh) -> None:
    before = {stage: owned(mesh, stage) for stage in ("stt", "llm", "tts")}
    created = create(mesh)
    session = created["session_id"]
    subjects = [f"{name}.{session}" for name in ("audio.input", "stt.output", "llm.output", "tts.output", "control")]
    async with join(created) as caller:
        await ask(caller, 1)
        await caller.wait_for("speech_started", turn=1)
        assert await journal(mesh, subjects[-1])
        assert exchange(mesh, "DELETE", f"/sessions/{session}")[0] == 204
        ended = await caller.wait_for("session_ended")
        assert ended["reason"] == "ended"
        await eventually("closed", lambda: caller.closed)
        assert caller.socket.close_code == 1000
    with stored(mesh) as kept:
        await eventually("keys gone", lambda: not list(kept.scan_iter(f"session:{session}:*")))
        assert kept.zscore("sessions", session) is None

        async def purged() -> bool:
            return not await journal(mesh, *subjects)

        await eventually("journal purged", purged)
        await asyncio.sleep(0.5)
        assert not list(kept.scan_iter(f"session:{session}:*"))
    for method, path in [("GET", ""), ("GET", "/history"), ("POST", "/token"), ("PATCH", "/config")]:
        status, body = call(mesh, method, f"/sessions/{session}{path}", {} if method != "GET" else None)
        assert (status, body["code"]) == (404, "session_not_found"), path
    assert exchange(mesh, "DELETE", f"/sessions/{session}")[0] == 204
    assert exchange(mesh, "DELETE", f"/sessions/{new_session_id()}")[0] == 204
    await eventually(
        "its owners let go", lambda: all(owned(mesh, stage) <= before[stage] + 2 for stage in before), timeout_s=10
    )


async def test_a_session_whose_time_is_over_is_let_go_by_its_owners(mesh: Mesh) -> None:
    created = create(mesh, ttl_s=10)
    session = created["session_id"]

    def holders() -> int:
        text = "".join(path.read_text() for path in mesh.log_dir.glob("*.log"))
        return text.count(f'"reason": "expired", "event": "letting_go", "session": "{session}"') or len(
            [line for line in text.splitlines() if session in line and "letting_go" in line and "expired" in line]
        )

    await eventually("expired", lambda: call(mesh, "GET", f"/sessions/{session}")[0] == 404, timeout_s=20)
    await eventually("stt, llm and tts let go", lambda: holders() == 3, timeout_s=30)
    assert call(mesh, "GET", f"/sessions/{session}")[0] == 404  # and nobody puts it back
    assert session not in json.dumps(call(mesh, "GET", "/sessions")[1])


# -- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One session a worker, one worker a stage."""
    found = start_mesh(tmp_path_factory.mktemp("small"), workers={"stt": 1, "llm": 1, "tts": 1}, MESHAG_CAPACITY="1")
    yield found
    found.stop()


async def test_a_full_mesh_says_when_to_come_again(small_mesh: Mesh) -> None:
    created = create(small_mesh)
    status, headers, body = exchange(small_mesh, "POST", "/sessions/with-config", {"config": instant.config()})
    assert (status, body["code"]) == (503, "no_capacity")
    assert headers["Content-Type"].startswith("application/problem+json")
    assert int(headers["Retry-After"]) >= 1
    assert [entry["session_id"] for entry in call(small_mesh, "GET", "/sessions")[1]["sessions"]] == [
        created["session_id"]
    ]  # the refused one has left nothing
    async with join(created) as caller:
        await caller.wait_for("ready")
        async with join(created) as again:  # the transport is full, but this is its own session
            await again.wait_for("ready")
            await eventually("replaced", lambda: caller.closed)
    call(small_mesh, "DELETE", f"/sessions/{created['session_id']}")
    request = {"config": instant.config()}
    await eventually("room", lambda: call(small_mesh, "POST", "/sessions/with-config", request)[0] == 201)


async def test_a_stage_without_a_worker_is_said_at_once(small_mesh: Mesh) -> None:
    for entry in call(small_mesh, "GET", "/sessions")[1]["sessions"]:
        call(small_mesh, "DELETE", f"/sessions/{entry['session_id']}")
    small_mesh.find("tts").child.send(signal.SIGKILL)
    request = {"config": instant.config()}
    status = 0

    def refused() -> bool:
        nonlocal status
        status, headers, body = exchange(small_mesh, "POST", "/sessions/with-config", request)
        assert status in (201, 503), body
        return status == 503 and int(headers["Retry-After"]) >= 1 and "tts" in body["title"]

    await eventually("503", refused)
    assert not call(small_mesh, "GET", "/sessions")[1]["sessions"] or status == 503
    text_only = {"config": piped("text_chat")}
    await eventually("a flow without tts", lambda: call(small_mesh, "POST", "/sessions/with-config", text_only)[0])
