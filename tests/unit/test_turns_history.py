"""History: what was heard, each turn once, the newest first to be kept."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag.errors import WireError
from meshag.turns.history import Exchange, History, decode, encode, heard

pytestmark = pytest.mark.unit

any_text = st.text(st.characters(codec=None), max_size=50)


def test_a_turn_is_kept_once_and_in_its_place() -> None:
    exchanges = [Exchange(turn, f"q{turn}", f"a{turn}") for turn in range(1, 6)]
    shuffled = random.Random(1).sample(exchanges, 5)
    history = History([*shuffled, *shuffled])
    assert history.exchanges == tuple(exchanges)
    history.append(Exchange(3, "q3", "a", interrupted=True))
    assert [exchange.reply for exchange in history.exchanges] == ["a1", "a2", "a", "a4", "a5"]


def test_messages() -> None:
    history = History([Exchange(1, "Hi.", "Hello."), Exchange(2, "And you?", "Fine."), Exchange(3, "Good.")])
    assert history.messages(1000) == [
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "And you?"),
        ("assistant", "Fine."),
        ("user", "Good."),
    ]


def test_questions_that_nobody_answered_become_one_message() -> None:
    history = History([Exchange(1, "What is"), Exchange(2, "the weather?", " "), Exchange(3, "Today?", "Sunny.")])
    assert history.messages(1000) == [("user", "What is\nthe weather?\nToday?"), ("assistant", "Sunny.")]


def test_what_the_agent_says_unasked() -> None:
    history = History([Exchange(1, "", "Welcome."), Exchange(2, "", "Are you there?"), Exchange(3, "Yes.")])
    assert history.messages(1000) == [("assistant", "Welcome.\nAre you there?"), ("user", "Yes.")]


def test_the_oldest_are_dropped_and_the_newest_is_kept_whatever_its_length() -> None:
    history = History([Exchange(turn, "12345", "67890") for turn in (1, 2, 3)])
    assert len(history.messages(30)) == 6
    assert len(history.messages(29)) == 4
    assert len(history.messages(0)) == 2
    assert History().messages(10) == []


@pytest.mark.parametrize(
    ("n", "ms", "chunk_ms", "text"),
    [
        (0, 0, 1000, ""),
        (1, 0, 0, "Hello there. "),
        (1, 500, 1000, "Hello there. How are"),
        (1, 990, 1000, "Hello there. How are you"),
        (1, 1000, 1000, "Hello there. How are you today?"),
        (1, 9000, 1000, "Hello there. How are you today?"),
        (0, 10, 1000, ""),
        (2, 500, 1000, "Hello there. How are you today?"),
        (9, 500, 1000, "Hello there. How are you today?"),
        (-1, -5, -1, ""),
        (1, 500, 0, "Hello there. "),
    ],
)
def test_heard(n: int, ms: int, chunk_ms: int, text: str) -> None:
    assert heard(["Hello there. ", "How are you today?"], n, ms, chunk_ms) == text


def test_heard_where_words_have_no_blanks() -> None:
    assert heard(["今日はいい天気ですね。"], 0, 500, 1000) == "今日はいい"


@settings(deadline=None)
@given(st.lists(any_text, max_size=4), st.integers(-2, 6), st.integers(-10, 5000), st.integers(-10, 5000))
def test_what_was_heard_is_a_beginning_of_the_reply(chunks: list[str], n: int, ms: int, chunk_ms: int) -> None:
    text = heard(chunks, n, ms, chunk_ms)
    assert "".join(chunks).startswith(text)
    assert text.startswith("".join(chunks[: max(n, 0)]))


@settings(deadline=None)
@given(st.integers(0, 2**40), any_text, any_text, st.booleans(), st.integers(0, 2**62))
def test_storing_never_fails(turn: int, user: str, reply: str, interrupted: bool, at_ns: int) -> None:
    stored = decode(encode(Exchange(turn, user, reply, interrupted, at_ns)))
    assert (stored.turn, stored.interrupted, stored.at_ns) == (turn, interrupted, at_ns)
    assert len(stored.user) == len(user)
    if user.isascii():
        assert stored.user == user


def test_half_a_surrogate_pair_is_stored_as_a_replacement() -> None:
    assert decode(encode(Exchange(1, "a\ud800", "\udfffb"))) == Exchange(1, "a\ufffd", "\ufffdb")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"turn": "1", "user": ""}', b"\xff", "\ud800", b"[" * 100_000])
def test_what_is_no_exchange_is_a_wire_error(data: bytes | str) -> None:
    with pytest.raises(WireError):
        decode(data)
