"""Daily's webhooks: whose they are, how old, and what they mean."""

import base64
import hmac
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.connectors.daily_webhooks import KINDS, is_trial, read, verify
from meshag.errors import AuthError, WireError
from meshag.sessions.events import EVENT_TYPES

pytestmark = pytest.mark.unit

SECRET = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
BODY = b'{"version":"1.0.0","type":"meeting.started","id":"evt-1","payload":{"room":"tea"},"event_ts":1700000000}'
AT_S = 1_700_000_000
SIGNATURES = {
    "1700000000": "QBSH5IU4AtrZTVE5723LCD4ZC8Sl5scuqrOuL+JFpNY=",
    "1700000000000": "vQQdlu5XdptUj0w/girmTje7klRAQAzadu6LGrdoWmI=",
}
"""Made by openssl (dgst -sha256 -mac HMAC) over the timestamp, a dot and the body."""


def signed(timestamp: str, signature: str | None = None) -> dict[str, str]:
    return {
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": SIGNATURES[timestamp] if signature is None else signature,
    }


class TestWhose:
    @pytest.mark.parametrize("timestamp", SIGNATURES)
    @pytest.mark.parametrize("late_s", [-299, 0, 299])
    def test_what_daily_signed_lately_is_taken(self, timestamp: str, late_s: int) -> None:
        verify(SECRET, signed(timestamp), BODY, AT_S + late_s)

    @pytest.mark.parametrize("timestamp", SIGNATURES)
    @pytest.mark.parametrize("late_s", [-301, 301, 86_400])
    def test_what_is_old_or_from_the_future_is_not(self, timestamp: str, late_s: int) -> None:
        with pytest.raises(AuthError) as refused:
            verify(SECRET, signed(timestamp), BODY, AT_S + late_s)
        assert refused.value.code == "webhook_old"

    @pytest.mark.parametrize(
        ("headers", "body", "code"),
        [
            ({}, BODY, "webhook_unsigned"),
            ({"X-Webhook-Timestamp": "1700000000"}, BODY, "webhook_unsigned"),
            (signed("1700000000"), BODY + b" ", "webhook_forged"),
            (signed("1700000000", SIGNATURES["1700000000000"]), BODY, "webhook_forged"),
            (signed("1700000001", SIGNATURES["1700000000"]), BODY, "webhook_forged"),
            (signed("1700000000", "ü"), BODY, "webhook_forged"),
            (signed("1700000000", "\udcff"), BODY, "webhook_forged"),  # a byte that is no text
            (signed("1700000000\udcff", "x"), BODY, "webhook_forged"),
        ],
    )
    def test_what_daily_did_not_sign_is_not(self, headers: dict[str, str], body: bytes, code: str) -> None:
        with pytest.raises(AuthError) as refused:
            verify(SECRET, headers, body, AT_S)
        assert refused.value.code == code
        assert SECRET not in str(refused.value)

    @pytest.mark.parametrize("timestamp", ["", "-1", "1e3", "٣", "now", "9" * 17])
    def test_a_signed_timestamp_that_is_no_number(self, timestamp: str) -> None:
        digest = hmac.new(base64.b64decode(SECRET), timestamp.encode() + b"." + BODY, "sha256").digest()
        with pytest.raises(AuthError):
            verify(SECRET, signed(timestamp, base64.b64encode(digest).decode()), BODY, AT_S)

    def test_a_secret_that_is_not_dailys(self) -> None:
        with pytest.raises(AuthError, match="DAILY_WEBHOOK_SECRET"):
            verify("not base64!", signed("1700000000"), BODY, AT_S)


class TestWhat:
    def event(self, kind: str, **payload: Any) -> bytes:
        return json.dumps({"version": "1.0.0", "type": kind, "id": "e-1", "payload": payload, "event_ts": 1}).encode()

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_is_one_of_our_events(self, kind: str) -> None:
        told = read(self.event(kind, room="tea"))
        assert told is not None
        assert told.kind in EVENT_TYPES
        assert (told.id, told.room) == ("e-1", "tea")

    def test_a_participant(self) -> None:
        payload = {"room": "tea", "session_id": "p-1", "user_name": "Ann", "user_id": "a", "joined_at": 1.5}
        joined, left = (
            read(self.event("participant.joined", **payload)),
            read(self.event("participant.left", **payload, duration=7.9)),
        )
        assert joined is not None
        assert left is not None
        assert joined.once == "joined/p-1"
        assert joined.data == {"participant": "p-1", "transport": "daily", "name": "Ann", "user_id": "a"}
        assert left.once == "left/p-1"
        assert left.data == {"participant": "p-1", "transport": "daily", "reason": "left", "duration_s": 7}

    def test_where_daily_tells_no_room_name(self) -> None:
        recording = read(self.event("recording.started", recording_id="r-1", start_ts=1))
        transcript = read(self.event("transcript.started", id="t-1", room_id="id-1"))
        assert recording is not None
        assert transcript is not None
        assert (recording.room, recording.recording) == ("", "r-1")
        assert (transcript.room, transcript.data["transcript"]) == ("id-1", "t-1")

    def test_an_error_is_not_repeated(self) -> None:
        told = read(self.event("recording.error", room_name="tea", error_msg="said: hello"))
        assert told is not None
        assert told.data == {}

    def test_what_is_none_of_ours(self) -> None:
        assert read(self.event("batch-processor.job-finished")) is None

    @given(
        st.binary()
        | st.builds(
            lambda value: json.dumps(value).encode(),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            ),
        )
    )
    def test_whatever_comes_is_read_or_refused(self, body: bytes) -> None:
        with suppress(WireError):
            told = read(body)
            assert told is None or told.kind in EVENT_TYPES

    @given(
        st.dictionaries(
            st.sampled_from(["room", "session_id", "duration", "recording_id", "id"]),
            st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        )
    )
    def test_payloads_of_other_shapes(self, payload: dict[str, Any]) -> None:
        for kind in KINDS:
            assert read(self.event(kind, **payload)) is not None

    def test_the_trial(self) -> None:
        assert is_trial(b'{"test": "test"}')
        for other in (b"", b"{}", b'{"test": "test", "a": 1}', b"\xff"):
            assert not is_trial(other)
