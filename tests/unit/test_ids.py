"""Ids become subjects, keys, paths and log fields: nothing but an id of our own may pass."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.ids import new_session_id, new_worker_id, parse_session_id, parse_worker_id

pytestmark = pytest.mark.unit

GOOD = "a" * 26
HOSTILE = "*>. \t\r\n\0/\\:%$\u2028\u0130\uff41\u0661"


@st.composite
def _nearly(draw: st.DrawFn) -> str:
    """A good id with something done to it."""
    text = list(new_session_id())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.sampled_from([*HOSTILE, "A", "0", "1", "8", "", "a"]))
        text[at : at + draw(st.integers(0, 1))] = piece
    return "".join(text)


def test_what_is_made_is_accepted_and_never_made_twice():
    made = {new_session_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(parse_session_id(text) == text for text in made)
    workers = {new_worker_id() for _ in range(1000)}
    assert len(workers) == 1000
    assert all(parse_worker_id(text) == text for text in workers)


def test_every_letter_of_the_alphabet_is_used():
    assert set("".join(new_session_id() for _ in range(1000))) == set("abcdefghijklmnopqrstuvwxyz234567")


@given(st.one_of(st.text(), st.text(alphabet=GOOD + HOSTILE + "b27", max_size=30), _nearly()))
def test_only_26_characters_of_a_to_z_and_2_to_7_are_a_session_id(text: str):
    ours = len(text) == 26 and all(c in "abcdefghijklmnopqrstuvwxyz234567" for c in text)
    assert parse_session_id(text) == (text if ours else None)


@pytest.mark.parametrize(
    "text", ["", GOOD + "\n", "\n" + GOOD, GOOD + " ", GOOD[:-1] + "*", GOOD[:-1] + ">", GOOD[:13] + "." + GOOD[:12],
             GOOD.upper(), GOOD[:-1] + "\0", GOOD[:-1] + "1", GOOD[:-1] + "\uff41",
             "$JS.API.STREAM.PURGE.X", "a" * 27, "a" * 25]
)  # fmt: skip
def test_hostile_ids_are_none(text: str):
    assert parse_session_id(text) is None


@given(st.one_of(st.text(), st.text(alphabet="ab27*>.\n", min_size=12, max_size=14)))
def test_a_worker_id_is_13_of_them(text: str):
    assert (parse_worker_id(text) is not None) == bool(re.fullmatch(r"[a-z2-7]{13}", text))
