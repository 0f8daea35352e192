"""The transport `daily` against the stand-in for Daily."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshag.connectors.contracts import Booking, Dial
from meshag.connectors.daily_api import DailyApi
from meshag.connectors.transports import daily
from meshag.connectors.transports.daily import DailyOptions, DailyTransport, room_name, session_of
from meshag.errors import (
    ConfigError,
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from standins import eventually
from vendors.daily import DOMAIN, KEY, DailyStandIn

pytestmark = pytest.mark.contract

NUMBER = "+12015550123"
SESSION = "abcdefghijklmnopqrstuvwxyz"
FLEET = "fleet2ab"


@pytest.fixture
async def vendor() -> AsyncIterator[DailyStandIn]:
    async with DailyStandIn() as vendor:
        yield vendor


@pytest.fixture
async def transport(vendor: DailyStandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DailyTransport]:
    monkeypatch.setenv("DAILY_API_KEY", KEY)
    monkeypatch.setenv("DAILY_DOMAIN", DOMAIN)
    monkeypatch.setenv("DAILY_BASE_URL", f"{vendor.url}/v1")
    monkeypatch.setattr("meshag.connectors.daily_api.FIRST_WAIT_S", 0.01)
    transport = DailyTransport()
    yield transport
    await transport.aclose()


def booking(**more: Any) -> Booking:
    """A session that asks for nothing special."""
    told: dict[str, Any] = {"session": SESSION, "base_url": "", "token": "ours", "options": DailyOptions()}
    return Booking(**(told | {"name": "my-ai-session", "fleet": FLEET, "ttl_s": 600} | more))


class TestInviting:
    async def test_the_room_has_what_was_asked_for_and_no_more(
        self, vendor: DailyStandIn, transport: DailyTransport
    ) -> None:
        before_s = int(time.time())
        made = await transport.invite(booking(max_participants=10, recording=True, transcription=True))
        (room,) = vendor.rooms.values()
        assert room.name == f"my-ai-session-mesh{FLEET}-{SESSION}"
        assert made.room_url == f"https://{DOMAIN}.daily.co/{room.name}"
        assert room.privacy == "private"
        expires_at_s = room.config.pop("exp")
        assert before_s + 600 <= expires_at_s <= time.time() + 600
        assert type(expires_at_s) is int
        assert room.config == {
            "eject_at_room_exp": True,
            "max_participants": 10,
            "enable_recording": "cloud",
            "enable_transcription_storage": True,
        }
        assert (made.room["name"], made.room["id"], made.room["url"]) == (room.name, room.id, room.url)
        assert made.room["expires_at_s"] == expires_at_s
        assert made.token not in str(made.room)
        assert KEY not in str(made.room)

    async def test_what_is_not_asked_for_is_not_sent(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        await transport.invite(booking(max_participants=1))
        (room,) = vendor.rooms.values()
        assert room.config.keys() == {"exp", "eject_at_room_exp", "max_participants"}
        assert room.config["max_participants"] == 2  # the agent is one of them

    async def test_the_token_opens_that_room_only_and_expires(
        self, vendor: DailyStandIn, transport: DailyTransport
    ) -> None:
        made = await transport.invite(booking())
        said = vendor.hall.read(made.token)
        assert said.keys() == {"r", "exp", "d", "iat"}  # no name, no rights
        assert (said["r"], said["exp"]) == (made.room["name"], made.room["expires_at_s"])
        other = await transport.invite(booking(session="b" * 26))
        assert vendor.hall.refusal(made.room["name"], made.token) == ""
        assert vendor.hall.refusal(other.room["name"], made.token) == "not-allowed"
        assert vendor.hall.refusal(made.room["name"], "") == "not-allowed"

    async def test_the_rights_asked_for(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        rights = {"hasPresence": True, "canSend": ["audio"], "canAdmin": False}
        made = await transport.invite(
            booking(
                recording=True,
                room={"enable_chat": True, "privacy": "public", "auto_start_recording": True},
                participant={"name": "Ann", "is_owner": True, "permissions": rights},
            )
        )
        said = vendor.hall.read(made.token)
        assert (said["u"], said["o"], said["p"], said["sr"]) == ("Ann", True, rights, True)
        (room,) = vendor.rooms.values()
        assert (room.privacy, room.config["enable_chat"]) == ("public", True)
        again = vendor.hall.read(await transport.admit(booking(), made.room))
        assert {key: again[key] for key in "ruop"} == {key: said[key] for key in "ruop"}

    @pytest.mark.parametrize(
        ("wish", "path"),
        [
            ({"room": {"colour": "red"}}, "room_config.colour"),
            ({"room": {"auto_start_recording": True}}, "room_config.auto_start_recording"),
            ({"participant": {"permissions": {"canFly": True}}}, "participant_config.permissions.canFly"),
        ],
    )
    async def test_a_wish_that_daily_would_refuse_is_the_callers_mistake(
        self, vendor: DailyStandIn, transport: DailyTransport, wish: dict[str, Any], path: str
    ) -> None:
        with pytest.raises(ConfigError) as refused:
            await transport.invite(booking(**wish))
        assert refused.value.path == path
        assert not vendor.requests

    @pytest.mark.parametrize(
        ("called", "slug"),
        [
            ("my-ai-session", "my-ai-session-"),
            ("", ""),
            ("Größe & Ärger / 7", "Gr-e-rger-7-"),
            ("日本語", ""),
            ("../../rooms?x=1", "rooms-x-1-"),
            ("x" * 200, "x" * 60 + "-"),
        ],
    )
    def test_names_are_safe_and_tell_the_session(self, called: str, slug: str) -> None:
        name = room_name(called, FLEET, SESSION)
        assert name == f"{slug}mesh{FLEET}-{SESSION}"
        assert len(name) <= 128
        assert session_of(name) == SESSION


class TestTakingDown:
    async def test_dismiss_deletes_the_room_and_may_be_repeated(
        self, vendor: DailyStandIn, transport: DailyTransport
    ) -> None:
        made = await transport.invite(booking())
        for _ in range(2):
            await transport.dismiss(SESSION, made.room)
        assert not vendor.rooms

    async def test_keep_moves_the_expiry(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        made = await transport.invite(booking(ttl_s=60))
        kept = await transport.keep(SESSION, made.room, 900)
        (room,) = vendor.rooms.values()
        assert room.config["exp"] == kept["expires_at_s"] >= made.room["expires_at_s"] + 840
        assert room.config["max_participants"] == 2

    async def test_a_sweep_takes_what_is_this_fleets_and_gone(
        self, vendor: DailyStandIn, transport: DailyTransport
    ) -> None:
        await transport.invite(booking())
        await transport.invite(booking(session="b" * 26))
        await transport.invite(booking(session="c" * 26, fleet="other"))
        api = DailyApi(KEY, f"{vendor.url}/v1")
        for number in range(120):  # more than a page, of somebody else's
            await api.create_room(f"theirs-{number}", "private", {})
        await api.aclose()
        asked: list[str] = []

        async def known(session: str) -> bool:
            asked.append(session)
            return session == SESSION

        await transport.sweep(FLEET, known)
        assert sorted(asked) == [SESSION, "b" * 26]
        assert len(vendor.rooms) == 122
        assert not any("b" * 26 in name for name in vendor.rooms)

    @pytest.mark.parametrize("status", [400, 500])
    async def test_a_room_whose_token_cannot_be_had_is_deleted(
        self, vendor: DailyStandIn, transport: DailyTransport, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport._api, "_deadline_s", 0.1)
        vendor.next = [{}, *[{"status": status}] * 20]
        with pytest.raises(ConnectorError):
            await transport.invite(booking())
        assert vendor.calls("POST", "/meeting-tokens")
        vendor.next = []
        await eventually("the room is deleted", lambda: not vendor.rooms)

    async def test_a_room_of_another_domain_is_deleted(
        self, vendor: DailyStandIn, transport: DailyTransport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "_domain", "other")
        with pytest.raises(ProviderRejected, match="DAILY_DOMAIN"):
            await transport.invite(booking())
        await eventually("the room is deleted", lambda: not vendor.rooms)


class TestFailures:
    async def test_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DAILY_API_KEY", "DAILY_DOMAIN"):
            monkeypatch.delenv(name, raising=False)
        assert DailyTransport().availability().detail == "set DAILY_API_KEY and DAILY_DOMAIN"
        monkeypatch.setenv("DAILY_API_KEY", KEY)
        assert DailyTransport().availability().detail == "set DAILY_DOMAIN"
        monkeypatch.setenv("DAILY_DOMAIN", DOMAIN)
        monkeypatch.setattr(daily, "find_spec", lambda name: None)
        assert DailyTransport().availability().detail == "pip install 'meshag[daily]'"

    @pytest.mark.parametrize("key", ["wrong-key", ""])
    async def test_a_wrong_key_is_named_and_not_told(self, vendor: DailyStandIn, key: str) -> None:
        api = DailyApi(key, f"{vendor.url}/v1")
        with pytest.raises(ProviderRejected, match="DAILY_API_KEY") as refused:
            await api.domain()
        await api.aclose()
        assert refused.value.code == "provider_unauthorized"
        assert not key or key not in str(refused.value)
        assert len(vendor.requests) == 1  # asked once: the answer would stay the same

    async def test_a_400_is_told_in_dailys_words(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        with pytest.raises(ProviderRejected, match=r"HTTP 400 invalid-request-error: .*unknown field") as refused:
            await transport._api.create_room("tea", "private", {"enable_transcription": True})
        assert not refused.value.retryable
        assert len(vendor.requests) == 1

    async def test_words_with_the_key_in_them_are_not_repeated(self, transport: DailyTransport) -> None:
        body = f'{{"error": "invalid-request-error", "info": "bad header {KEY}"}}'.encode()
        said = str(transport._api._refusal(400, body, {}))
        assert said == "daily: HTTP 400 invalid-request-error"

    async def test_429_and_5xx_are_asked_again(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        vendor.next = [{"status": 429}, {"status": 503}, {"status": 500}, {"lost": True}]
        made = await transport.invite(booking())
        assert made.room["name"] in vendor.rooms
        assert len(vendor.calls("POST", "/rooms")) == 5
        assert len(vendor.rooms) == 1  # the lost answer's room is the one

    async def test_retry_after_is_kept(
        self, vendor: DailyStandIn, transport: DailyTransport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vendor.next = [{"status": 429, "retry_after": "0.4"}]
        began_s = time.monotonic()
        await transport.probe(DailyOptions())
        assert time.monotonic() - began_s >= 0.4
        monkeypatch.setattr(transport._api, "_deadline_s", 1.0)
        vendor.next = [{"status": 429, "retry_after": "30"}]
        began_s = time.monotonic()
        with pytest.raises(ProviderLimited, match="too many requests") as limited:
            await transport.probe(DailyOptions())
        assert limited.value.retry_after_s == 30
        assert time.monotonic() - began_s < 1  # there is no use in waiting

    @pytest.mark.parametrize(
        ("faults", "kind", "words"),
        [
            ({"status": 500}, ProviderUnavailable, "Daily is out of order"),
            ({"status": 429}, ProviderLimited, "too many requests"),
            ({"refuse": True}, ProviderUnavailable, "DAILY_BASE_URL"),
            ({"mute": True}, ProviderTimeout, "DAILY_BASE_URL"),
            ({"headers_only": True}, ProviderTimeout, "DAILY_BASE_URL"),
            ({"drip_s": 0.02}, ProviderTimeout, "DAILY_BASE_URL"),
            ({"cut_after": 0}, ProviderUnavailable, "DAILY_BASE_URL"),
            ({"status": 302}, ProviderGarbage, "HTTP 302"),
            ({"status": 403}, ProviderRejected, "DAILY_API_KEY may not"),
            *(
                ({"garbage": kind}, ProviderGarbage, "shape")
                for kind in ("html", "json", "types", "nan", "empty", "binary")
            ),
            ({"garbage": "long_line"}, ProviderGarbage, "endless"),
        ],
    )
    async def test_everything_else_is_one_of_our_errors_within_the_deadline(
        self,
        vendor: DailyStandIn,
        transport: DailyTransport,
        monkeypatch: pytest.MonkeyPatch,
        faults: dict[str, Any],
        kind: type[ConnectorError],
        words: str,
    ) -> None:
        monkeypatch.setattr(transport._api, "_deadline_s", 0.3)
        vendor.faults.set(**faults)
        began_s = time.monotonic()
        with pytest.raises(kind, match=words) as failed:
            await transport.probe(DailyOptions())
        assert type(failed.value) is kind
        assert KEY not in str(failed.value)
        assert time.monotonic() - began_s < 3

    async def test_a_cancelled_invitation_leaves_no_room(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        vendor.faults.set(first_s=0.2)
        inviting = asyncio.create_task(transport.invite(booking()))
        await eventually("it was asked", lambda: vendor.calls("POST", "/meeting-tokens"))
        inviting.cancel()
        await asyncio.gather(inviting, return_exceptions=True)
        vendor.faults.set()
        await eventually("the room is deleted", lambda: not vendor.rooms)

    def test_a_token_for_every_room_is_never_asked_for(self) -> None:
        api = DailyApi(KEY, "http://127.0.0.1:1")
        for properties in ({"exp": 1}, {"room_name": "tea"}):
            with pytest.raises(AssertionError):
                asyncio.run(api.token(properties))


class TestInTheRoom:
    async def test_presence_and_eject(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = (await transport.invite(booking())).room
        assert await transport.participants(room) == []
        ann = vendor.hall.sit(room["name"], name="Ann", user_id="a-1")
        (found,) = await transport.participants(room)
        assert (found.id, found.name, found.user_id) == (ann.id, "Ann", "a-1")
        assert await transport.eject(room, [ann.id, "nobody"]) == [ann.id]
        assert await transport.participants(room) == []
        await transport.dismiss(SESSION, room)
        assert await transport.participants(room) == []
        assert await transport.eject(room, ["x"]) == []

    async def test_recordings_are_those_of_the_room(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = (await transport.invite(booking(recording=True))).room
        other = (await transport.invite(booking(session="b" * 26, recording=True))).room
        for one in (room, other):
            vendor.hall.sit(one["name"])
            await transport.start_recording(one)
        (mine,), (theirs,) = await transport.recordings(room), await transport.recordings(other)
        assert mine.status == "in_progress"
        await transport.stop_recording(room)
        assert (await transport.recordings(room))[0].status == "finished"
        link = await transport.recording_link(room, mine.id)
        assert link is not None
        assert mine.id in link.url
        assert link.expires_at_s > time.time()
        assert await transport.recording_link(room, theirs.id) is None
        assert await transport.recording_link(room, "../rooms") is None
        assert await transport.room_of(theirs.id) == other["name"]

    async def test_a_session_that_was_not_to_be_recorded(self, transport: DailyTransport) -> None:
        room = (await transport.invite(booking())).room
        with pytest.raises(ConfigError, match="recorded"):
            await transport.start_recording(room)

    async def test_transcripts_are_those_of_the_room(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = (await transport.invite(booking(transcription=True))).room
        other = (await transport.invite(booking(session="b" * 26, transcription=True))).room
        for one in (room, other):
            vendor.hall.sit(one["name"])
            await transport.start_transcription(one)
            await transport.stop_transcription(one)
        (mine,), (theirs,) = await transport.transcripts(room), await transport.transcripts(other)
        assert mine.status == "finished"
        link = await transport.transcript_link(room, mine.id)
        assert link is not None
        assert link.url.endswith(".vtt?signed=yes")
        assert await transport.transcript_link(room, theirs.id) is None


class TestDialOut:
    async def invited(self, vendor: DailyStandIn, transport: DailyTransport) -> dict[str, Any]:
        room = (await transport.invite(booking(room={"enable_dialout": True}))).room
        vendor.hall.sit(room["name"], name="Agent")
        return room

    @pytest.mark.parametrize(
        ("option", "wish", "enabled"),
        [(False, True, True), (True, None, True), (True, False, False), (False, None, False)],
    )
    async def test_a_room_dials_only_when_that_is_asked_for(
        self, vendor: DailyStandIn, transport: DailyTransport, option: bool, wish: bool | None, enabled: bool
    ) -> None:
        wishes = {} if wish is None else {"enable_dialout": wish}
        made = await transport.invite(booking(options=DailyOptions(dial_out=option), room=wishes))
        assert vendor.rooms[made.room["name"]].config.get("enable_dialout", False) is enabled
        vendor.hall.sit(made.room["name"])
        if enabled:
            assert await transport.dial_out(made.room, Dial(NUMBER))
            return
        with pytest.raises(ConfigError, match="call people") as refused:
            await transport.dial_out(made.room, Dial(NUMBER))
        assert refused.value.code == "dial_out_not_enabled"
        assert "enable_dialout" in refused.value.path
        assert "dial_out" in refused.value.fix
        assert not vendor.calls("POST", "/dialOut/start")

    @pytest.mark.parametrize(
        ("dial", "said"),
        [
            (Dial(NUMBER), {"phoneNumber": NUMBER, "displayName": "Telephone"}),  # else Daily shows the number
            (
                Dial(sip_uri="sip:ada@example.com", display_name="Ada", caller_id="+12015550199"),
                {"sipUri": "sip:ada@example.com", "displayName": "Ada", "callerId": "+12015550199"},
            ),
        ],
    )
    async def test_a_call_is_in_the_room_until_it_is_hung_up(
        self, vendor: DailyStandIn, transport: DailyTransport, dial: Dial, said: dict[str, str]
    ) -> None:
        room = await self.invited(vendor, transport)
        call = await transport.dial_out(room, dial)
        assert [one["body"] for one in vendor.calls("POST", "/dialOut/start")] == [said]
        assert {one.name for one in await transport.participants(room)} == {"Agent", said["displayName"]}
        assert await transport.hang_up(room, call) is True
        assert vendor.calls("POST", "/dialOut/stop")[0]["body"] == {"sessionId": call}
        assert {one.name for one in await transport.participants(room)} == {"Agent"}
        assert await transport.hang_up(room, call) is False

    async def test_another_rooms_call_is_not_hung_up(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = await self.invited(vendor, transport)
        call = await transport.dial_out(room, Dial(NUMBER))
        other = (await transport.invite(booking(session="b" * 26, room={"enable_dialout": True}))).room
        assert await transport.hang_up(other, call) is False
        assert len(await transport.participants(room)) == 2

    @pytest.mark.parametrize("status", [400, 403])
    async def test_a_plan_without_it_is_told_without_the_number(
        self, vendor: DailyStandIn, transport: DailyTransport, status: int
    ) -> None:
        room = await self.invited(vendor, transport)
        vendor.dials = False  # a 400 whose words repeat the number
        vendor.next = [{"status": 403}] if status == 403 else []
        with pytest.raises(
            ProviderRejected, match=rf"HTTP {status} [a-z-]+: .*plan of this domain has no dial-out"
        ) as no:
            await transport.dial_out(room, Dial(NUMBER, caller_id="+12015550199"))
        assert "5550" not in str(no.value)
        assert len(vendor.calls("POST", "/dialOut/start")) == 1

    async def test_a_wrong_key_is_still_named(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = await self.invited(vendor, transport)
        vendor.next = [{"status": 401}]
        with pytest.raises(ProviderRejected, match="does not know DAILY_API_KEY"):
            await transport.dial_out(room, Dial(NUMBER))

    async def test_an_empty_room_is_tried_again_later(self, vendor: DailyStandIn, transport: DailyTransport) -> None:
        room = (await transport.invite(booking(room={"enable_dialout": True}))).room
        with pytest.raises(ProviderUnavailable, match="nobody is in the room yet") as early:
            await transport.dial_out(room, Dial(NUMBER))
        assert early.value.retryable

    @pytest.mark.parametrize("wrong", [{"lost": True}, {"status": 500}])
    async def test_nobody_is_rung_twice(
        self, vendor: DailyStandIn, transport: DailyTransport, wrong: dict[str, Any]
    ) -> None:
        room = await self.invited(vendor, transport)
        vendor.next = [wrong]
        with pytest.raises(ProviderUnavailable, match="whether it dials is not known") as lost:
            await transport.dial_out(room, Dial(NUMBER))
        assert not lost.value.retryable
        assert len(vendor.calls("POST", "/dialOut/start")) == 1

    async def test_what_daily_was_too_busy_for_is_asked_again(
        self, vendor: DailyStandIn, transport: DailyTransport
    ) -> None:
        room = await self.invited(vendor, transport)
        vendor.next = [{"status": 429}]
        assert await transport.dial_out(room, Dial(NUMBER))
        assert len(vendor.calls("POST", "/dialOut/start")) == 2

    def test_whom_to_call_is_in_no_repr(self) -> None:
        assert repr(Dial(NUMBER, "sip:ada@example.com", "Ada", "+12015550199")) == "Dial()"
