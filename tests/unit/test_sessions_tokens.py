"""A caller's token opens one session for a short time, and nothing else does."""

import base64
import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag import clock
from meshag.errors import AuthError
from meshag.ids import new_session_id
from meshag.sessions.tokens import LEEWAY_S, sign, verify

pytestmark = pytest.mark.unit

SECRET = "s" * 32
SESSION = new_session_id()


def _code(token: str, secret: str = SECRET) -> str:
    with pytest.raises(AuthError) as caught:
        verify(token, SESSION, secret)
    assert len(token) < 12 or token not in str(caught.value)  # a shorter one may well be a piece of the message
    return caught.value.code


def _claims(**changed: object) -> dict[str, object]:
    now = int(clock.wall_s())
    claims = {"sub": SESSION, "aud": "meshag-caller", "iat": now, "exp": now + 60} | changed
    return {name: value for name, value in claims.items() if value is not None}


def test_the_session_it_was_made_for_opens():
    verify(sign(SESSION, SECRET, 60), SESSION, SECRET)


def test_one_use_is_not_the_other():
    join, resume = sign(SESSION, SECRET, 60), sign(SESSION, SECRET, 60, "resume")
    verify(resume, SESSION, SECRET, "resume")
    assert _code(resume) == "token_invalid"
    with pytest.raises(AuthError):
        verify(join, SESSION, SECRET, "resume")


def test_another_session_does_not():
    assert _code(sign(new_session_id(), SECRET, 60)) == "token_invalid"


def test_another_secret_does_not():
    assert _code(sign(SESSION, "t" * 32, 60)) == "token_invalid"


def test_an_expired_one_does_not_and_says_so():
    assert _code(sign(SESSION, SECRET, -LEEWAY_S - 1)) == "token_expired"


def test_the_clocks_of_two_services_may_differ_a_little():
    verify(sign(SESSION, SECRET, -LEEWAY_S + 5), SESSION, SECRET)
    ahead = jwt.encode(_claims(iat=int(clock.wall_s()) + LEEWAY_S - 5), SECRET, algorithm="HS256")
    verify(ahead, SESSION, SECRET)


@pytest.mark.parametrize("missing", ["sub", "aud", "iat", "exp"])
def test_every_claim_is_needed(missing: str):
    assert _code(jwt.encode(_claims(**{missing: None}), SECRET, algorithm="HS256")) == "token_invalid"


@pytest.mark.parametrize(
    "changed", [{"aud": "someone-else"}, {"sub": 7}, {"sub": [SESSION]}, {"exp": "never"}, {"exp": None, "nbf": 0}]
)
def test_strange_claims_do_not_open(changed: dict[str, object]):
    claims = _claims(**changed)
    raw = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(raw.encode(), SECRET.encode())
    token = f"{raw}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
    assert _code(token) == "token_invalid"


def test_an_unsigned_one_does_not():
    assert _code(jwt.encode(_claims(), "", algorithm="none")) == "token_invalid"


def test_another_algorithm_does_not():
    assert _code(jwt.encode(_claims(), SECRET * 2, algorithm="HS512"), SECRET * 2) == "token_invalid"


def test_every_changed_character_is_noticed():
    token = sign(SESSION, SECRET, 60)
    payload_ends = token.rindex(".")
    for at in range(payload_ends):
        if token[at] != ".":
            changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            assert _code(changed) == "token_invalid", at


@given(st.text())
def test_garbage_does_not(text: str):
    assert _code(text) == "token_invalid"
