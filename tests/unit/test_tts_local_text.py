"""What the local voice makes of text before it speaks."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.connectors.tts.local import LONGEST_CHARS, sentences, speakable

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Hello** _there_", "Hello there"),
        ("See [our page](https://example.com/a_b) now", "See our page now"),
        ("<b>bold</b> move", "bold move"),
        ("- one\n- two", "one\ntwo"),
        ("Hi 😀\x00 there\u202e", "Hi there"),
        ("½ price for 𝓗𝓮𝓵𝓵𝓸", "1 2 price for Hello"),
        ("It is ③ or ٣", "It is 3 or 3"),
        ("5 < 6", "5 6"),
        ("9" * 13, " ".join("9" * 13)),
    ],
)
def test_speakable(text: str, said: str) -> None:
    assert "\n".join(" ".join(line.split()) for line in speakable(text).splitlines()) == said


@given(st.text(max_size=300))
def test_nothing_unspeakable_is_left(text: str) -> None:
    for char in speakable(text):
        assert char == "\n" or unicodedata.category(char)[0] not in "C"
        assert char.isascii() or not char.isnumeric()


@given(st.text(alphabet=st.sampled_from("ab .,!?\n;:-1"), max_size=2000))
def test_no_sentence_is_too_long_and_no_letter_is_lost(text: str) -> None:
    parts = list(sentences(text))
    assert all(0 < len(part) <= LONGEST_CHARS for part in parts)
    assert [c for c in "".join(parts) if c.isalnum()] == [c for c in text if c.isalnum()]


def test_a_long_sentence_is_parted_at_a_comma() -> None:
    first = "word " * 40 + "end,"
    assert list(sentences(f"{first} {'more ' * 30}.")) == [first, ("more " * 30).strip() + " ."]
