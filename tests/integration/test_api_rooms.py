"""`POST /sessions`, creation that is repeated, and sessions page by page."""

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshag.testing import TestCaller
from meshes import ask, call, create
from standins import eventually, exchange, stored, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

OPTIONS = {"config": instant.config()}


def post(mesh: Mesh, path: str, body: Any, key: str | None = None) -> tuple[int, Any, Any]:
    return exchange(mesh, "POST", path, body, {"Idempotency-Key": key} if key is not None else {})


# -- rooms ------------------------------------------------------------------------------------------------------------


async def test_a_session_over_a_websocket_says_all_that_a_caller_needs(mesh: Mesh) -> None:
    body = {
        "provider": "websocket",
        "room_config": {"name": "Front desk", "max_participants": 5, "enable_transcription": False},
        "participant_config": {"name": "Ada", "is_owner": True, "permissions": {"canSend": ["audio"]}},
        "options": {**OPTIONS, "ttl_s": 600},
    }
    status, headers, made = await asyncio.to_thread(post, mesh, "/sessions", body)
    assert status == 201, made
    assert headers["Location"] == f"/sessions/{made['session_id']}"
    assert made["room_name"] == made["session_id"]
    assert made["provider_metadata"]["provider"] == "websocket"
    assert made["provider_metadata"]["out_rate_hz"] == 24_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["expires_at"])
    left_s = datetime.fromisoformat(made["expires_at"]).timestamp() - datetime.now(UTC).timestamp()
    assert 560 < left_s <= 600
    _, shown = await asyncio.to_thread(call, mesh, "GET", f"/sessions/{made['session_id']}")
    assert (shown["session_name"], shown["max_participants"], shown["ttl_s"]) == ("Front desk", 5, 600)
    assert shown["enable_transcription"] is False
    async with TestCaller(made["room_url"], made["meeting_token"]) as caller:
        await caller.wait_for("ready")
        await ask(caller, 1)
        await caller.wait_for("speech_ended", turn=1)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"provider": "carrier-pigeon"}, "provider"),
        ({"provider": "daily"}, "provider"),
        ({"provider": 1}, "provider"),
        ({"room": {}}, "room"),
        ({"room_config": {"max_participants": 0}}, "room_config.max_participants"),
        ({"room_config": {"privacy": "secret"}}, "room_config.privacy"),
        ({"room_config": {"name": "a\nb"}}, "room_config.name"),
        ({"room_config": {"auto_start_recording": True}}, "room_config.auto_start_recording"),
        (
            {"room_config": {"auto_start_transcription": True, "enable_transcription": False}},
            "room_config.auto_start_transcription",
        ),
        ({"participant_config": {"permissions": {"can_send": True}}}, "participant_config.permissions.can_send"),
        (
            {"options": {"config": {"connectors": {"llm": {"primary": "nobody"}}}}},
            "options.config.connectors.llm.primary",
        ),
        ({"options": {"ttl_s": 1}}, "options.ttl_s"),
        ([], ""),
    ],
)
def test_what_is_wrong_is_named_where_this_request_has_it(mesh: Mesh, body: Any, path: str) -> None:
    status, _, answer = post(mesh, "/sessions", body)
    assert status == 422
    assert path in [problem["path"] for problem in answer["problems"]], answer


def test_the_provider_takes_the_place_of_the_configured_transport(mesh: Mesh) -> None:
    config: dict[str, Any] = instant.config()
    config["connectors"] = {**config["connectors"], "transport": {"primary": "daily", "fallback": ["websocket"]}}
    status, _, made = post(mesh, "/sessions", {"provider": "websocket", "options": {"config": config}})
    assert status == 201, made
    shown = call(mesh, "GET", f"/sessions/{made['session_id']}")[1]
    assert shown["config"]["connectors"]["transport"]["primary"] == "websocket"
    assert shown["config"]["connectors"]["transport"]["fallback"] == []
    assert shown["config"]["connectors"]["llm"]["primary"] == "instant"


# -- the same again ---------------------------------------------------------------------------------------------------


def listed(mesh: Mesh) -> int:
    return len(call(mesh, "GET", "/sessions?limit=1000")[1]["sessions"])


@pytest.mark.parametrize(
    ("path", "body", "token"),
    [("/sessions", {"options": OPTIONS}, "meeting_token"), ("/sessions/with-config", OPTIONS, "token")],
)
def test_the_same_request_again_makes_nothing_and_answers_the_same(
    mesh: Mesh, path: str, body: Any, token: str
) -> None:
    key = f"again-{path}"
    status, headers, first = post(mesh, path, body, key)
    assert (status, headers.get("Idempotent-Replayed")) == (201, None)
    status, headers, second = post(mesh, path, body, key)
    assert (status, headers["Idempotent-Replayed"]) == (201, "true")
    assert headers["Location"] == f"/sessions/{first['session_id']}"
    assert {**second, token: ""} == {**first, token: ""}
    assert second[token].count(".") == 2
    assert listed(mesh) == 1

    status, _, refused = post(mesh, path, {**body, "x": 1}, key)
    assert (status, refused["code"]) == (422, "idempotency_key_reused")
    other = "/sessions" if path != "/sessions" else "/sessions/with-config"
    assert post(mesh, other, body, key)[2]["code"] == "idempotency_key_reused"
    call(mesh, "DELETE", f"/sessions/{first['session_id']}")
    assert post(mesh, path, body, key)[2]["session_id"] == first["session_id"]
    assert listed(mesh) == 0
    with stored(mesh) as valkey:
        (place,) = [name for name in valkey.keys("idempotency:*") if first["session_id"] in valkey.get(name)]
        assert 86_000 < valkey.ttl(place) <= 86_400


async def test_many_at_once_make_one(mesh: Mesh) -> None:
    sent = [asyncio.to_thread(post, mesh, "/sessions/with-config", OPTIONS, "at-once") for _ in range(8)]
    answers = await asyncio.gather(*sent)
    assert {status for status, _, _ in answers} == {201}
    assert len({body["session_id"] for _, _, body in answers}) == 1
    assert listed(mesh) == 1


def test_what_came_to_nothing_may_be_sent_again(mesh: Mesh) -> None:
    wrong = {"config": {"connectors": {"llm": {"primary": "nobody"}}}}
    assert post(mesh, "/sessions/with-config", wrong, "nothing")[0] == 422
    assert post(mesh, "/sessions/with-config", OPTIONS, "nothing")[0] == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
def test_a_key_that_is_none(mesh: Mesh, key: str) -> None:
    status, _, body = post(mesh, "/sessions/with-config", OPTIONS, key)
    assert (status, body["code"], body["path"]) == (422, "idempotency_key_invalid", "Idempotency-Key")
    assert listed(mesh) == 0


def test_who_died_while_making_one_stands_in_nobody_s_way_for_long(mesh: Mesh) -> None:
    status, _, made = post(mesh, "/sessions/with-config", OPTIONS, "dead")
    assert status == 201
    with stored(mesh) as valkey:
        (place,) = [name for name in valkey.keys("idempotency:*") if made["session_id"] in valkey.get(name)]
        unfinished = {**json.loads(valkey.get(place)), "answer": ""}
        valkey.set(place, json.dumps(unfinished), px=700)
        status, _, again = post(mesh, "/sessions/with-config", OPTIONS, "dead")  # it waits for the answer, and begins
        assert status == 201
        assert again["session_id"] != made["session_id"]


# -- page by page -----------------------------------------------------------------------------------------------------


def pages(mesh: Mesh, query: str) -> list[list[str]]:
    found, cursor = [], ""
    while True:
        status, body = call(mesh, "GET", f"/sessions?{query}{cursor}")
        assert status == 200, body
        found.append([one["session_id"] for one in body["sessions"]])
        if body["next_cursor"] is None:
            return found
        cursor = f"&cursor={body['next_cursor']}"


def test_pages_hold_every_session_once_the_newest_first(mesh: Mesh) -> None:
    made = [create(mesh)["session_id"] for _ in range(5)]
    assert pages(mesh, "limit=2") == [made[:2:-1], made[2:0:-1], made[:1]]
    assert pages(mesh, "limit=5") == [made[::-1]]
    assert pages(mesh, "") == [made[::-1]]


def test_what_is_made_and_ended_meanwhile_moves_no_later_page(mesh: Mesh) -> None:
    made = [create(mesh)["session_id"] for _ in range(4)]
    _, first = call(mesh, "GET", "/sessions?limit=2")
    create(mesh)
    call(mesh, "DELETE", f"/sessions/{made[3]}")
    call(mesh, "DELETE", f"/sessions/{made[2]}")
    _, second = call(mesh, "GET", f"/sessions?limit=2&cursor={first['next_cursor']}")
    assert [one["session_id"] for one in second["sessions"]] == [made[1], made[0]]


def test_sessions_of_the_same_moment_are_each_listed_once(mesh: Mesh) -> None:
    made = {create(mesh)["session_id"] for _ in range(6)}
    with stored(mesh) as valkey:
        for session in made:
            valkey.zadd("sessions", {session: 1_767_225_600.25})
    found = pages(mesh, "limit=1")
    assert sorted(one for page in found for one in page) == sorted(made)
    assert [len(page) for page in found] == [1] * 6


async def test_sessions_of_a_status(mesh: Mesh) -> None:
    silent, spoken = create(mesh), create(mesh)
    async with TestCaller(spoken["room_url"], spoken["token"]) as caller:
        await caller.wait_for("ready")

        def live() -> list[list[str]]:
            return pages(mesh, "status=live")

        await eventually("live", lambda: live() == [[spoken["session_id"]]])
        assert pages(mesh, "status=created") == [[silent["session_id"]]]
    await eventually("idle", lambda: pages(mesh, "status=idle&limit=1") == [[spoken["session_id"]]])
    assert pages(mesh, "status=live") == [[]]


@pytest.mark.parametrize(
    ("query", "path"),
    [("status=ended", "status"), ("cursor=x", "cursor"), ("cursor=WzEsIngiXQ", "cursor"), ("limit=0", "limit")],
)
def test_what_no_page_can_be_asked_for(mesh: Mesh, query: str, path: str) -> None:
    status, body = call(mesh, "GET", f"/sessions?{query}")
    assert (status, body["path"]) == (422, path)
