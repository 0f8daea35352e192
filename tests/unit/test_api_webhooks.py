"""How a delivery is signed, how long a failed one waits, and what settings are refused."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from meshag.api import webhooks
from meshag.api.webhooks import Endpoint, key_of, signed, wait_s
from meshag.errors import ConfigError
from meshag.sessions.events import EVENT_TYPES
from meshag.settings import Settings

pytestmark = pytest.mark.unit

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def settings(**more: object) -> Settings:
    return Settings.model_validate({"webhook_url": "https://example.com/hook", "webhook_secret": SECRET, **more})


def test_a_delivery_is_signed_as_the_specification_shows() -> None:
    headers = signed(key_of(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)
    assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_is_base64_after_its_mark_and_else_the_text_itself() -> None:
    assert key_of("whsec_" + base64.b64encode(b"secret").decode()) == b"secret"
    assert key_of("secret") == b"secret"
    told = hmac.new(b"secret", b"a.1.b", hashlib.sha256).digest()
    assert signed(b"secret", "a", 1, b"b")["webhook-signature"] == f"v1,{base64.b64encode(told).decode()}"
    with pytest.raises(ConfigError, match="base64"):
        key_of("whsec_no base64")


def test_waits_grow_and_differ_and_end() -> None:
    for attempt, longest_s in ((1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (99, 300)):
        waits = [wait_s(attempt, None) for _ in range(200)]
        assert longest_s / 2 <= min(waits) < max(waits) <= longest_s
    assert len({wait_s(5, None) for _ in range(20)}) > 10


def test_the_receivers_patience_counts_as_far_as_events_live() -> None:
    assert wait_s(1, "120") == 120
    assert wait_s(9, "1") >= 128
    assert wait_s(1, "999999") == webhooks.RETRY_AFTER_MOST_S
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < wait_s(1, later) <= 60
    for nonsense in ("", "soon", "-5", "1e9", "Wed, 99 Foo 2026"):
        assert wait_s(1, nonsense) <= 1


def test_no_url_is_no_endpoint_and_no_events_named_are_all() -> None:
    assert Endpoint.of(settings(webhook_url="")) is None
    endpoint = Endpoint.of(settings())
    assert endpoint is not None
    assert endpoint.types == set(EVENT_TYPES)
    some = Endpoint.of(settings(webhook_events="session_ended, error"))
    assert some is not None
    assert some.types == {"session_ended", "error"}


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"webhook_url": "ftp://example.com"}, "MESHAG_WEBHOOK_URL"),
        ({"webhook_url": "https://"}, "MESHAG_WEBHOOK_URL"),
        ({"webhook_url": "http://[::1"}, "MESHAG_WEBHOOK_URL"),
        ({"webhook_secret": ""}, "MESHAG_WEBHOOK_SECRET"),
        ({"webhook_events": "session_ended,nothing"}, "MESHAG_WEBHOOK_EVENTS"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Endpoint.of(settings(**wrong))
    assert refused.value.path == names
    assert refused.value.fix
    assert SECRET not in str(refused.value)
