"""A mesh whose callers meet in Daily rooms: the stand-in for Daily's REST API, and one in place of its SDK."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bench import instant
from conversations import asked, mesh_in
from daily_rooms import WEBHOOK_SECRET, DailyInThread, RoomCaller, create
from meshag.embedded.mesh import Mesh
from meshes import call, join, start_mesh
from meshes import create as create_websocket
from standins import eventually, loudest_hz
from vendors.daily import DOMAIN, KEY, send_webhook
from vendors.town import DOCUMENTED, Town

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def daily() -> Iterator[DailyInThread]:
    with DailyInThread() as daily:
        yield daily


@pytest.fixture(scope="module")
def mesh(daily: DailyInThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = start_mesh(tmp_path_factory.mktemp("daily"), workers={"stt": 1, "llm": 1, "tts": 1}, **daily.env())
    yield mesh
    mesh.stop()


@pytest.fixture(autouse=True)
def healthy(daily: DailyInThread, mesh: Mesh) -> Iterator[None]:
    """What a test breaks is mended after it, and its sessions end."""
    yield
    daily.vendor.faults.set()
    daily.vendor.next = []
    for entry in call(mesh, "GET", "/sessions?limit=100")[1]["sessions"]:
        call(mesh, "DELETE", f"/sessions/{entry['session_id']}")


@asynccontextmanager
async def watching(mesh: Mesh, session: str) -> AsyncIterator[list[dict[str, Any]]]:
    """The session's events from its beginning on, as `GET /ws` tells them."""
    events: list[dict[str, Any]] = []

    async def read(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            event = json.loads(message.data)
            if event.get("session_id") == session:
                events.append(event)

    async with aiohttp.ClientSession() as web, web.ws_connect(f"{mesh.url}/ws?after=0") as socket:
        reading = asyncio.create_task(read(socket))
        yield events
        reading.cancel()


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in events if event["type"] == kind]


async def agent_is_there(daily: DailyInThread, created: dict[str, Any]) -> str:
    (agent,) = await eventually("the agent is in the room", lambda: daily.agents(created))
    return str(agent)


@pytest.mark.models
async def test_the_documented_request_unchanged(tmp_path: Any) -> None:
    request = json.loads(json.dumps(DOCUMENTED))
    request["config"]["connectors"]["transport"] = {"primary": "daily", "config": {}}
    with DailyInThread() as daily:
        async with Town() as town, mesh_in(town, tmp_path, **daily.env()) as mesh:
            status, body = await asked(mesh, "POST", "/sessions/with-config", request)
            assert status == 201, body
            (room,) = daily.vendor.rooms.values()
            assert body == {
                "session_id": body["session_id"],
                "room_url": f"https://{DOMAIN}.daily.co/{room.name}",
                "token": body["token"],
                "config_stored": True,
            }
            assert room.name.startswith("my-ai-session-")
            assert room.name.endswith(body["session_id"])
            config = dict(room.config)
            assert config.pop("exp") == pytest.approx(time.time() + 3600, abs=60)
            assert config == {
                "eject_at_room_exp": True,
                "max_participants": 10,
                "enable_recording": "cloud",
                "enable_transcription_storage": True,
            }
            said = daily.vendor.hall.read(body["token"])
            assert said["r"] == room.name
            assert said["exp"] == room.config["exp"]
            assert not said.get("o")
            assert (await asked(mesh, "DELETE", f"/sessions/{body['session_id']}"))[0] == 204
            await eventually("the room is deleted", lambda: not daily.vendor.rooms)
            written = "".join(path.read_text() for path in mesh.log_dir.glob("*.log"))
            assert "session_created" in written
            assert KEY not in written
            assert body["token"] not in written


async def test_a_question_spoken_in_the_room_is_answered_there(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh)
    async with RoomCaller(daily.vendor.url, created) as caller, watching(mesh, created["session_id"]) as events:
        await agent_is_there(daily, created)
        await caller.ask(7)
        heard = await caller.wait_for("turn_ended")
        assert heard["text"] == "Where is my order number 7?"
        await caller.wait_for("speech_ended", turn=heard["turn"], interrupted=False)
        assert len(caller.audio) > 24_000  # more than half a second
        assert loudest_hz(bytes(caller.audio[4_800:28_800]), 24_000) == pytest.approx(200, abs=3)
        await caller.send({"type": "text", "text": "And by mail?"})
        second = await caller.wait_for("speech_started", turn=heard["turn"] + 1)
        await caller.send({"type": "interrupt"})
        await caller.wait_for("speech_ended", turn=second["turn"], interrupted=True)
        await caller.send({"type": "text", "text": " "})
        assert (await caller.wait_for("error"))["code"] == "text_invalid"
        await caller.send({"event": "chat-msg", "message": "not for the agent"})
        await eventually("it is told who is there", lambda: of(events, "participant_joined"))
        assert of(events, "participant_joined")[0]["participant"] == caller.id
    async with watching(mesh, created["session_id"]) as events:
        await eventually("and who has gone", lambda: of(events, "participant_left"))
        assert of(events, "participant_left")[0]["participant"] == caller.id
    assert len(daily.agents(created)) == 1  # it stays, for who comes back


async def test_the_end_of_the_session_is_the_end_of_the_room(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh)
    async with RoomCaller(daily.vendor.url, created) as caller:
        agent = await agent_is_there(daily, created)
        assert call(mesh, "DELETE", f"/sessions/{created['session_id']}")[0] == 204
        await eventually("the room is deleted", lambda: created["room_url"] not in _urls(daily))
        await eventually("everybody is out", lambda: any(one["type"] == "left" for one in caller.seen))
    assert agent
    (status, _) = call(mesh, "GET", f"/sessions/{created['session_id']}")
    assert status == 404


def _urls(daily: DailyInThread) -> list[str]:
    return [room.url for room in daily.vendor.rooms.values()]


async def test_a_room_lives_as_long_as_its_session_and_no_longer(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh, ttl_s=10)
    first_s = daily.room(created).config["exp"]
    async with RoomCaller(daily.vendor.url, created):
        await eventually("it lives on", lambda: daily.room(created).config["exp"] >= first_s + 3)
    began_s = time.monotonic()
    await eventually("it is taken down", lambda: created["room_url"] not in _urls(daily), timeout_s=30)
    assert time.monotonic() - began_s < 20  # the agent alone keeps nothing alive
    assert call(mesh, "GET", f"/sessions/{created['session_id']}")[0] == 404


async def test_a_session_that_is_extended_has_its_room_for_longer(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh, ttl_s=20)
    await agent_is_there(daily, created)
    assert call(mesh, "POST", f"/sessions/{created['session_id']}/extend", {"ttl_s": 900})[0] == 200
    await eventually("the room too", lambda: daily.room(created).config["exp"] > time.time() + 800)
    status, body = call(mesh, "POST", f"/sessions/{created['session_id']}/token")
    assert status == 201
    assert daily.vendor.hall.refusal(daily.room(created).name, body["token"]) == ""


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ({"status": 401}, "provider_unauthorized", "DAILY_API_KEY"),
        ({"status": 400}, "provider_rejected", "HTTP 400 invalid-request-error"),
        ({"garbage": "html"}, "provider_garbage", "shape"),
        ({"status": 503}, "provider_unavailable", "Daily is out of order"),
    ],
)
def test_a_daily_that_fails_is_a_502_and_leaves_nothing(
    daily: DailyInThread, mesh: Mesh, faults: dict[str, Any], code: str, words: str
) -> None:
    daily.vendor.faults.set(**faults)
    config = instant.config()
    config["connectors"]["transport"] = {"primary": "daily"}  # type: ignore[index]
    status, problem = call(mesh, "POST", "/sessions/with-config", {"config": config, "session_name": "broken"})
    assert (status, problem["code"]) == (502, code)
    assert words in problem["title"]
    assert KEY not in json.dumps(problem)
    daily.vendor.faults.set()
    assert not [entry for entry in call(mesh, "GET", "/sessions")[1]["sessions"] if entry["session_name"] == "broken"]
    assert not [name for name in daily.vendor.rooms if name.startswith("broken")]


async def test_who_is_there_and_out(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh, max_participants=3)
    at = f"/sessions/{created['session_id']}/participants"
    async with RoomCaller(daily.vendor.url, created) as caller:
        await agent_is_there(daily, created)
        found = call(mesh, "GET", at)[1]["participants"]
        assert {one["name"] for one in found} == {"Agent", ""}
        assert call(mesh, "POST", f"{at}/eject", {"ids": []})[0] == 422
        answer = call(mesh, "POST", f"{at}/eject", {"ids": [caller.id, "nobody"]})
        assert answer == (200, {"session_id": created["session_id"], "ejected": [caller.id]})
        await eventually("out", lambda: {"type": "left", "reason": "ejected"} in caller.seen)


async def test_recordings_and_transcripts(daily: DailyInThread, mesh: Mesh) -> None:
    created, other = create(mesh, enable_recording=True), create(mesh, enable_recording=True)
    await agent_is_there(daily, created)
    at = f"/sessions/{created['session_id']}"
    for path in ("recordings/start", "recordings/stop", "transcription/start", "transcription/stop"):
        assert call(mesh, "POST", f"{at}/{path}")[0] == 202, path
    (recording,) = call(mesh, "GET", f"{at}/recordings")[1]["recordings"]
    (transcript,) = call(mesh, "GET", f"{at}/transcripts")[1]["transcripts"]
    assert (recording["status"], transcript["status"]) == ("finished", "finished")
    assert recording["id"] in call(mesh, "GET", f"{at}/recordings/{recording['id']}/link")[1]["url"]
    assert transcript["id"] in call(mesh, "GET", f"{at}/transcripts/{transcript['id']}/link")[1]["url"]
    elsewhere = f"/sessions/{other['session_id']}"
    assert call(mesh, "GET", f"{elsewhere}/recordings")[1]["recordings"] == []
    assert call(mesh, "GET", f"{elsewhere}/recordings/{recording['id']}/link")[0] == 404
    assert call(mesh, "GET", f"{elsewhere}/transcripts/{transcript['id']}/link")[0] == 404


async def test_somebody_is_called_into_the_room(daily: DailyInThread, mesh: Mesh) -> None:
    number = "+12015550123"
    asked_for = {"provider": "daily", "room_config": {"max_participants": 3, "enable_dialout": True}}
    status, created = call(mesh, "POST", "/sessions", {**asked_for, "options": {"config": instant.config()}})
    assert status == 201, created
    await agent_is_there(daily, created)
    at = f"/sessions/{created['session_id']}/dial-out"
    async with watching(mesh, created["session_id"]) as events:
        status, dialled = call(mesh, "POST", at, {"phone_number": number})
        assert (status, list(dialled)) == (201, ["call_id"])
        await eventually("they are in", lambda: of(events, "participant_joined"))
        assert number not in json.dumps(events)
    assert set(daily.room(created).dialled) == {dialled["call_id"]}
    assert call(mesh, "DELETE", f"{at}/{dialled['call_id']}")[0] == 204
    assert daily.room(created).dialled == {}
    status, problem = call(mesh, "DELETE", f"{at}/{dialled['call_id']}")
    assert (status, problem["code"]) == (404, "call_not_found")
    for body, path in (
        ({}, "phone_number"),
        ({"phone_number": number, "sip_uri": "sip:ada@example.com"}, "phone_number"),
        ({"phone_number": "2015550123"}, "phone_number"),
        ({"sip_uri": "https://example.com"}, "sip_uri"),
    ):
        status, problem = call(mesh, "POST", at, body)
        assert (status, problem["path"]) == (422, path), body
    daily.vendor.dials = False
    status, problem = call(mesh, "POST", at, {"phone_number": number})
    daily.vendor.dials = True
    assert (status, problem["code"]) == (502, "provider_rejected")
    assert "the plan of this domain has no dial-out" in problem["title"]
    assert "5550123" not in json.dumps(problem)
    written = "".join(path.read_text() for path in mesh.log_dir.glob("*.log"))
    assert created["session_id"] in written
    assert "5550123" not in written


async def test_who_may_be_called_is_said_when_the_session_is_made(daily: DailyInThread, mesh: Mesh) -> None:
    plain = create(mesh)
    status, problem = call(mesh, "POST", f"/sessions/{plain['session_id']}/dial-out", {"phone_number": "+12015550123"})
    assert (status, problem["code"]) == (422, "dial_out_not_enabled")
    assert "enable_dialout" in problem["fix"]
    assert "enable_dialout" not in daily.room(plain).config
    config = instant.config()
    config["connectors"]["transport"] = {"primary": "daily", "config": {"daily": {"dial_out": True}}}  # type: ignore[index]
    status, made = call(mesh, "POST", "/sessions/with-config", {"config": config})
    assert status == 201, made
    assert daily.room(made).config["enable_dialout"] is True


async def test_a_session_without_a_room(mesh: Mesh) -> None:
    created = create_websocket(mesh)
    at = f"/sessions/{created['session_id']}"
    assert call(mesh, "GET", f"{at}/participants")[1]["participants"] == []
    async with join(created):

        def there() -> list[str]:
            return [one["id"] for one in call(mesh, "GET", f"{at}/participants")[1]["participants"]]

        await eventually("the caller is there", lambda: there() == ["caller-1"])
    for method, path in (("GET", "recordings"), ("POST", "transcription/start"), ("GET", "recordings/x/link")):
        status, problem = call(mesh, method, f"{at}/{path}")
        assert (status, problem["code"]) == (409, "not_offered_by_transport")
    for method, path, body in (
        ("POST", "dial-out", {"sip_uri": "sip:ada@example.com"}),
        ("DELETE", "dial-out/x", None),
    ):
        status, problem = call(mesh, method, f"{at}/{path}", body)
        assert (status, problem["code"]) == (409, "not_offered_by_transport")


async def test_webhooks_become_events_once(daily: DailyInThread, mesh: Mesh) -> None:
    created = create(mesh, enable_recording=True)
    room, url = daily.room(created), f"{mesh.url}/webhooks/daily"
    await agent_is_there(daily, created)
    call(mesh, "POST", f"/sessions/{created['session_id']}/recordings/start")
    (recording,) = [one for one in daily.vendor.recordings.values() if one["room_name"] == room.name]

    async def tell(kind: str, number: str, payload: dict[str, Any], **how: Any) -> tuple[int, bool]:
        event = {"version": "1.0.0", "type": kind, "id": number, "payload": payload, "event_ts": time.time()}
        status, said = await send_webhook(url, how.pop("secret", WEBHOOK_SECRET), event, **how)
        return status, said.get("taken", False)

    joined = {"session_id": "p-1", "room": room.name, "user_name": "Ann", "user_id": "a-1", "joined_at": 1}
    tag = room.id[:8]
    assert await tell("participant.joined", f"{tag}-1", joined) == (200, True)
    assert await tell("participant.joined", f"{tag}-1", joined) == (200, False)  # the same again
    assert await tell("recording.started", f"{tag}-2", {"recording_id": recording["id"]}) == (200, True)  # no room
    ready = {"recording_id": recording["id"], "room_name": room.name, "duration": 9}
    assert await tell("recording.ready-to-download", f"{tag}-3", ready) == (200, True)
    assert await tell("transcript.started", f"{tag}-4", {"id": "t-1", "room_id": room.id}) == (200, True)  # its id only
    assert await tell("batch-processor.error", f"{tag}-5", {"room_name": room.name}) == (200, False)  # unknown to us
    assert await tell("meeting.ended", f"{tag}-6", {"room": "somebody-elses"}) == (200, False)
    for wrong in ({"secret": "b3RoZXI="}, {"at_s": time.time() - 301}, {"at_s": time.time() + 301}):
        assert await tell("meeting.started", f"{tag}-7", {"room": room.name}, **wrong) == (401, False)
    async with watching(mesh, created["session_id"]) as events:
        await eventually("the last is told", lambda: of(events, "transcription_started"))
        kinds = [event["type"] for event in events if event["type"] not in ("session_created", "participant_left")]
        assert kinds == ["participant_joined", "recording_started", "recording_ready", "transcription_started"]
        assert of(events, "participant_joined") == [
            {"participant": "p-1", "transport": "daily", "name": "Ann", "user_id": "a-1"}
        ]
        assert of(events, "recording_ready") == [{"recording": recording["id"], "duration_s": 9}]
        call(mesh, "DELETE", f"/sessions/{created['session_id']}")
        late = {"recording_id": recording["id"], "room_name": room.name, "duration": 10}
        assert await tell("recording.ready-to-download", f"{tag}-8", late) == (200, True)
        await eventually("also after the session's end", lambda: len(of(events, "recording_ready")) == 2)


async def test_a_webhook_that_is_made_at_daily(daily: DailyInThread, mesh: Mesh) -> None:
    body = {"url": f"{mesh.url}/webhooks/daily", "eventTypes": ["participant.joined"]}
    headers, address = {"Authorization": f"Bearer {KEY}"}, f"{daily.vendor.url}/v1/webhooks"
    async with aiohttp.ClientSession(headers=headers) as web, web.post(address, json=body) as answer:
        assert (answer.status, (await answer.json())["state"]) == (200, "ACTIVE")
    for raw in (b"", b"[]", b'{"type": "meeting.started"}'):
        async with aiohttp.ClientSession() as web, web.post(f"{mesh.url}/webhooks/daily", data=raw) as answer:
            assert answer.status == 401
    for event in ({"id": 5, "type": "meeting.started"}, {"type": "meeting.started", "payload": {}}):
        assert (await send_webhook(body["url"], WEBHOOK_SECRET, event))[0] == 400
