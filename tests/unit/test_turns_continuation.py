"""Another model goes on with a reply: no word of what was said is said twice, and none that is new is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.turns.continuation import Continuation

pytestmark = pytest.mark.unit

SAID = "Sure thing. Your order has left the warehouse, "
NEW = "and it will be with you tomorrow. Anything else?"


def go_on(said: str, text: str, size: int = 3) -> str:
    continuation = Continuation(said)
    pieces = [continuation.push(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join([*pieces, continuation.flush()])


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "repeated",
    ["", SAID, "Your order has left the warehouse, ", "your  order has\nleft the warehouse,", "  " + SAID.upper()],
    ids=["nothing", "everything", "the last sentence", "other blanks and case", "loudly"],
)
def test_what_is_repeated_is_taken_away(repeated: str, size: int) -> None:
    assert go_on(SAID, repeated + NEW, size).strip() == NEW


@pytest.mark.parametrize("text", ["Sure thing, boss.", "Your order is fine.", "Sure", "Your order has left", ""])
def test_what_only_begins_like_it_stays(text: str) -> None:
    assert go_on(SAID, text) == text


def test_a_word_does_not_grow_into_the_one_before() -> None:
    assert go_on("The capital of France is", "Paris.") == " Paris."
    assert go_on("The capital of France is", " Paris.") == " Paris."
    assert go_on("The capital of France is ", " Paris.") == "Paris."
    assert go_on("The capital of France is", ", of course, Paris.") == ", of course, Paris."


def test_a_short_word_may_be_said_again() -> None:
    assert go_on("Yes, yes. ", "yes. It is.") == "yes. It is."


def test_where_nothing_was_said_nothing_waits() -> None:
    continuation = Continuation("")
    assert continuation.push("Hello") == "Hello"
    assert continuation.push(" there") == " there"
    assert continuation.flush() == ""


def test_pieces_that_cannot_be_a_repetition_wait_for_nothing() -> None:
    assert Continuation(SAID).push("and ") == "and "


@given(st.text(max_size=200), st.text(max_size=200), st.integers(1, 50))
def test_it_never_adds_or_reorders(said: str, text: str, size: int) -> None:
    assert text.endswith(go_on(said, text, size).lstrip())


@given(st.text(alphabet="ab .,ßİ\n", max_size=60), st.text(alphabet="ab .,ßİ\n", max_size=60), st.integers(1, 9))
def test_how_it_is_cut_makes_no_difference(said: str, text: str, size: int) -> None:
    assert go_on(said, text, size) == go_on(said, text, 1000)
