"""The stand-in for Daily answers as Daily's reference says, quirks included.

It was held once against a client of others' making, Pipecat's `DailyRESTHelper`, which showed that Daily takes an
`exp` with a fraction; that package is too heavy to be installed for every run, so its requests are repeated here.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from vendors.daily import DOMAIN, KEY, DailyStandIn

pytestmark = pytest.mark.contract


@pytest.fixture
async def vendor() -> AsyncIterator[DailyStandIn]:
    async with DailyStandIn() as vendor:
        yield vendor


@pytest.fixture
async def web(vendor: DailyStandIn) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        f"{vendor.url}/v1/".removesuffix("/") + "/", headers={"Authorization": f"Bearer {KEY}"}
    ) as web:
        yield web


async def ask(web: aiohttp.ClientSession, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
    async with web.request(method, path.lstrip("/") or "./", json=body, params=query) as answer:
        return answer.status, await answer.json()


class TestRooms:
    async def test_a_room_tells_what_was_set_and_no_more(self, web: aiohttp.ClientSession) -> None:
        asked = {"name": "tea", "privacy": "private", "properties": {"exp": time.time() + 60, "enable_chat": True}}
        status, room = await ask(web, "POST", "/rooms", asked)
        assert status == 200  # not 201
        assert room.keys() == {"id", "name", "api_created", "privacy", "url", "created_at", "config"}
        assert room["url"] == f"https://{DOMAIN}.daily.co/tea"
        assert room["config"] == asked["properties"]
        assert await ask(web, "GET", "/rooms/tea") == (200, room)

    async def test_quirk_a_room_is_public_and_for_ever_unless_told_otherwise(self, web: aiohttp.ClientSession) -> None:
        _, room = await ask(web, "POST", "/rooms", {})
        assert room["privacy"] == "public"
        assert "exp" not in room["config"]
        assert room["name"]

    @pytest.mark.parametrize(
        "body",
        [
            {"title": "tea"},
            {"properties": {"enable_transcription": True}},
            {"properties": {"enable_recording": "off"}},
            {"properties": {"exp": "tomorrow"}},
            {"properties": {"permissions": {"canFly": True}}},
            {"privacy": "org"},
            {"name": "no spaces"},
            {"name": "x" * 129},
        ],
    )
    async def test_what_it_does_not_know_is_refused(self, web: aiohttp.ClientSession, body: Any) -> None:
        status, said = await ask(web, "POST", "/rooms", body)
        assert (status, said["error"]) == (400, "invalid-request-error")
        assert said["info"]

    async def test_quirk_a_name_that_is_taken_is_a_400(self, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea"})
        status, said = await ask(web, "POST", "/rooms", {"name": "tea"})
        assert (status, said) == (400, {"error": "invalid-request-error", "info": "a room named tea already exists"})

    async def test_a_property_is_changed_and_one_taken_away(self, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea", "properties": {"exp": 2_000_000_000, "lang": "de"}})
        _, room = await ask(web, "POST", "/rooms/tea", {"properties": {"exp": None, "max_participants": 3}})
        assert room["config"] == {"lang": "de", "max_participants": 3}

    async def test_a_deleted_room_is_gone(self, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea"})
        assert await ask(web, "DELETE", "/rooms/tea") == (200, {"deleted": True, "name": "tea"})
        gone = (404, {"error": "not-found", "info": "room tea not found"})
        assert await ask(web, "DELETE", "/rooms/tea") == gone
        assert await ask(web, "GET", "/rooms/tea") == gone

    async def test_rooms_are_listed_by_pages_the_newest_first(self, web: aiohttp.ClientSession) -> None:
        for number in range(5):
            await ask(web, "POST", "/rooms", {"name": f"r{number}"})
        _, first = await ask(web, "GET", "/rooms", limit=2)
        assert (first["total_count"], [one["name"] for one in first["data"]]) == (5, ["r4", "r3"])
        _, second = await ask(web, "GET", "/rooms", limit=2, starting_after=first["data"][-1]["id"])
        assert [one["name"] for one in second["data"]] == ["r2", "r1"]


class TestKeys:
    async def test_quirk_no_key_is_a_400_and_a_wrong_one_a_401(self, vendor: DailyStandIn) -> None:
        async with aiohttp.ClientSession(f"{vendor.url}/v1/") as web:
            assert (await ask(web, "GET", "/rooms"))[1]["error"] == "authorization-header-error"
            assert (await ask(web, "GET", "/rooms"))[0] == 400
        async with aiohttp.ClientSession(f"{vendor.url}/v1/", headers={"Authorization": "Bearer other"}) as web:
            assert await ask(web, "GET", "/rooms") == (401, {"error": "authentication-error"})

    async def test_the_domain_of_the_key(self, web: aiohttp.ClientSession) -> None:
        assert (await ask(web, "GET", "/"))[1]["domain_name"] == DOMAIN

    async def test_a_body_that_is_no_json(self, web: aiohttp.ClientSession) -> None:
        async with web.post("rooms", data=b"{") as answer:
            assert (answer.status, (await answer.json())["error"]) == (400, "json-parsing-error")


class TestTokens:
    async def test_a_token_is_a_jwt_with_short_names(self, vendor: DailyStandIn, web: aiohttp.ClientSession) -> None:
        soon = int(time.time()) + 60
        asked = {"room_name": "tea", "exp": soon, "is_owner": True, "user_name": "Ann", "start_cloud_recording": True}
        _, answer = await ask(web, "POST", "/meeting-tokens", {"properties": asked})
        said = jwt.decode(answer["token"], KEY, algorithms=["HS256"])
        assert said.pop("iat") <= time.time()
        assert said == {"r": "tea", "exp": soon, "o": True, "u": "Ann", "sr": True, "d": vendor.hall.domain_id}
        assert await ask(web, "GET", f"/meeting-tokens/{answer['token']}") == (200, asked)

    async def test_quirk_a_token_without_a_room_opens_all_and_without_an_expiry_for_ever(
        self, vendor: DailyStandIn, web: aiohttp.ClientSession
    ) -> None:
        for name in ("tea", "coffee"):
            await ask(web, "POST", "/rooms", {"name": name, "privacy": "private"})
        _, everywhere = await ask(web, "POST", "/meeting-tokens", {})
        _, tea = await ask(web, "POST", "/meeting-tokens", {"properties": {"room_name": "tea"}})
        assert [vendor.hall.refusal(name, everywhere["token"]) for name in ("tea", "coffee")] == ["", ""]
        assert [vendor.hall.refusal(name, tea["token"]) for name in ("tea", "coffee")] == ["", "not-allowed"]
        assert "exp" not in vendor.hall.read(everywhere["token"])

    async def test_who_may_come_in(self, vendor: DailyStandIn, web: aiohttp.ClientSession) -> None:
        now = int(time.time())
        await ask(web, "POST", "/rooms", {"name": "open"})
        await ask(web, "POST", "/rooms", {"name": "shut", "privacy": "private", "properties": {"max_participants": 1}})
        await ask(web, "POST", "/rooms", {"name": "over", "properties": {"exp": now - 1}})

        async def token(**properties: Any) -> str:
            _, answer = await ask(web, "POST", "/meeting-tokens", {"properties": properties})
            return str(answer["token"])

        assert vendor.hall.refusal("none", "") == "not-found"
        assert vendor.hall.refusal("open", "") == ""
        assert vendor.hall.refusal("shut", "") == "not-allowed"
        assert vendor.hall.refusal("shut", "forged") == "invalid-token"
        assert vendor.hall.refusal("shut", await token(room_name="shut", exp=now - 1)) == "exp-token"
        assert vendor.hall.refusal("over", await token(room_name="over")) == "exp-room"
        vendor.hall.sit("shut")
        assert vendor.hall.refusal("shut", await token(room_name="shut")) == "meeting-full"

    async def test_a_field_that_it_does_not_know(self, web: aiohttp.ClientSession) -> None:
        assert (await ask(web, "POST", "/meeting-tokens", {"properties": {"room": "tea"}}))[0] == 400
        assert (await ask(web, "POST", "/meeting-tokens", {"properties": {"user_id": "x" * 37}}))[0] == 400


class TestPeople:
    async def test_both_presences_and_eject(self, vendor: DailyStandIn, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea"})
        ann, bob = vendor.hall.sit("tea", name="Ann"), vendor.hall.sit("tea", name="Bob", user_id="b-1")
        _, everybody = await ask(web, "GET", "/presence")
        _, here = await ask(web, "GET", "/rooms/tea/presence")
        assert here == {"total_count": 2, "data": everybody["tea"]}
        assert here["data"][0].keys() == {"room", "id", "userId", "userName", "mtgSessionId", "joinTime", "duration"}
        assert (await ask(web, "GET", "/rooms/tea/presence", userId="b-1"))[1]["data"][0]["id"] == bob.id
        out = await ask(web, "POST", "/rooms/tea/eject", {"ids": [ann.id, "nobody"]})
        assert out == (200, {"ejectedIds": [ann.id]})
        assert (await ask(web, "POST", "/rooms/tea/eject", {"ids": ["x"] * 101}))[0] == 400

    async def test_app_messages_are_small(self, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea"})
        said = await ask(web, "POST", "/rooms/tea/send-app-message", {"data": {"a": 1}, "recipient": "*"})
        assert said == (200, {"sent": "true"})  # a string
        assert (await ask(web, "POST", "/rooms/tea/send-app-message", {"data": {"a": "x" * 4096}}))[0] == 400


class TestKept:
    async def test_a_recording(self, vendor: DailyStandIn, web: aiohttp.ClientSession) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea", "properties": {"enable_recording": "cloud"}})
        start, stop = "/rooms/tea/recordings/start", "/rooms/tea/recordings/stop"
        assert (await ask(web, "POST", start, {"type": "cloud"}))[0] == 400  # nobody is there
        vendor.hall.sit("tea")
        assert (await ask(web, "POST", start, {"type": "raw-tracks"}))[0] == 400
        assert await ask(web, "POST", start, {"type": "cloud"}) == (200, {"status": "sent"})
        _, listed = await ask(web, "GET", "/recordings", room_name="tea")
        assert listed["data"][0]["status"] == "in-progress"
        assert await ask(web, "POST", stop, {}) == (200, {"status": "sent"})
        one = listed["data"][0]["id"]
        assert (await ask(web, "GET", f"/recordings/{one}"))[1]["status"] == "finished"
        assert (await ask(web, "GET", f"/recordings/{one}/access-link"))[1].keys() == {"download_link", "expires"}
        assert (await ask(web, "GET", "/recordings/other"))[0] == 404
        assert (await ask(web, "GET", "/recordings", room_name="coffee"))[1] == {"total_count": 0, "data": []}

    async def test_a_transcript_is_kept_where_that_was_asked_for(
        self, vendor: DailyStandIn, web: aiohttp.ClientSession
    ) -> None:
        keep = {"enable_transcription_storage": True}
        await ask(web, "POST", "/rooms", {"name": "lost"})
        _, room = await ask(web, "POST", "/rooms", {"name": "tea", "properties": keep})
        for name in ("lost", "tea"):
            vendor.hall.sit(name)
            assert await ask(web, "POST", f"/rooms/{name}/transcription/start", {}) == (200, {"sent": "true"})
            assert await ask(web, "POST", f"/rooms/{name}/transcription/stop", {}) == (200, {"sent": "true"})
        _, listed = await ask(web, "GET", "/transcript", roomId=room["id"])
        assert [one["status"] for one in listed["data"]] == ["t_finished"]
        one = listed["data"][0]["transcriptId"]
        assert (await ask(web, "GET", f"/transcript/{one}/access-link"))[1]["link"].endswith(".vtt?signed=yes")
        assert (await ask(web, "GET", "/transcript"))[1]["total_count"] == 1


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "code"), [(429, "rate-limit-error"), (403, "forbidden-error"), (503, "server-error")]
    )
    async def test_its_errors(self, vendor: DailyStandIn, web: aiohttp.ClientSession, status: int, code: str) -> None:
        vendor.faults.set(status=status, retry_after="2")
        async with web.get("rooms") as answer:
            assert (answer.status, await answer.json()) == (status, {"error": code})
            assert answer.headers["Retry-After"] == "2"
        vendor.faults.set()
        assert (await ask(web, "GET", "/rooms"))[0] == 200

    async def test_the_next_request_only(self, vendor: DailyStandIn, web: aiohttp.ClientSession) -> None:
        vendor.next = [{"status": 500}, {"lost": True}]
        assert (await ask(web, "GET", "/rooms"))[0] == 500
        with pytest.raises(aiohttp.ClientError):
            await ask(web, "POST", "/rooms", {"name": "tea"})
        assert "tea" in vendor.rooms


async def test_it_runs_as_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "vendors.daily", "--port", "0"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with aiohttp.ClientSession(f"{url}/v1/", headers={"Authorization": f"Bearer {KEY}"}) as web:
        assert (await ask(web, "POST", "/rooms", {"name": "tea"}))[0] == 200
        async with web.post(f"{url}/__faults", json={"status": 503}) as answer:
            assert answer.status == 200
        assert (await ask(web, "GET", "/rooms"))[0] == 503
        async with web.get(f"{url}/__rooms") as answer:
            assert list((await answer.json())["rooms"]) == ["tea"]
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


class TestDialOut:
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"phoneNumber": "+12015550123", "sipUri": "sip:ada@example.com"},
            {"phoneNumber": "12015550123"},
            {"sipUri": "ada@example.com"},
            {"phone_number": "+12015550123"},
        ],
    )
    async def test_what_it_does_not_take(self, vendor: DailyStandIn, web: aiohttp.ClientSession, body: Any) -> None:
        await ask(web, "POST", "/rooms", {"name": "tea", "properties": {"enable_dialout": True}})
        vendor.hall.sit("tea")
        assert (await ask(web, "POST", "/rooms/tea/dialOut/start", body))[0] == 400

    async def test_a_room_dials_when_it_may_and_somebody_is_in_it(
        self, vendor: DailyStandIn, web: aiohttp.ClientSession
    ) -> None:
        body = {"phoneNumber": "+12015550123"}
        await ask(web, "POST", "/rooms", {"name": "tea"})
        assert (await ask(web, "POST", "/rooms/tea/dialOut/start", body))[0] == 400
        await ask(web, "POST", "/rooms/tea", {"properties": {"enable_dialout": True}})
        assert (await ask(web, "POST", "/rooms/tea/dialOut/start", body))[0] == 404
        vendor.hall.sit("tea")
        status, said = await ask(web, "POST", "/rooms/tea/dialOut/start", body)
        assert (status, said.keys(), said["ok"]) == (200, {"ok", "sessionId"}, "true")
        _, found = await ask(web, "GET", "/rooms/tea/presence")
        assert "+12015550123" in {one["userName"] for one in found["data"]}  # Daily's default
