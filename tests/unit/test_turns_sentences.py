"""Chunks: nothing lost, nothing changed, cut where a voice may breathe."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshag.turns.sentences import FIRST_MAX_CHARS, MAX_CHARS, Chunker, last_whole_sentence, speakable

pytestmark = pytest.mark.unit


def cut(text: str, *, first: bool = True) -> list[str]:
    chunker = Chunker(first=first)
    return chunker.push(text) + chunker.flush()


replies = st.lists(
    st.sampled_from(
        [
            *"ab1. ,;:!?…—\n\"')*。！、",
            "Dr.",
            "e.g.",
            "3.5",
            "U.S.",
            "...",
            " word ",
            "**",
            "So it is done. ",
            "。」",
            "x" * 50,
        ]
    ),
    max_size=80,
).map("".join) | st.text(max_size=400)


@settings(deadline=None)
@given(replies, st.lists(st.integers(1, 12), min_size=1), st.booleans())
def test_the_chunks_are_the_reply_in_whatever_pieces_it_comes(text: str, sizes: list[int], first: bool) -> None:
    chunker, chunks, at, turn = Chunker(first=first), [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        chunks += chunker.push(text[at : at + size])
        at, turn = at + size, turn + 1
    chunks += chunker.flush()
    assert "".join(chunks) == text
    assert chunks == cut(text, first=first)
    assert all(0 < len(chunk) <= MAX_CHARS for chunk in chunks)
    assert len(chunks[0] if chunks and first else "") <= FIRST_MAX_CHARS


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("Of course I can, and with pleasure. What is it?", ["Of course I can, ", "and with pleasure. What is it?"]),
        ("Sure, why not? I would love to hear it.", ["Sure, why not? ", "I would love to hear it."]),
        ("Yes. No. Perhaps it is so. Who can tell?", ["Yes. No. Perhaps it is so. ", "Who can tell?"]),
        ("It works—mostly—as it should.", ["It works—mostly—", "as it should."]),
        ("今日はいい天気ですね。散歩に行きましょう。", ["今日はいい天気ですね。", "散歩に行きましょう。"]),
    ],
)
def test_the_first_chunk_ends_at_a_clause(text: str, chunks: list[str]) -> None:
    assert cut(text) == chunks


@pytest.mark.parametrize(
    "whole",
    [
        "I think that Dr. Smith lives on the St. Martin road.",
        "Many animals, e.g. cats and dogs, sleep all day.",
        "She moved to the U.S. in the year of the flood.",
        "The price has risen by 3.5 per cent since then.",
        "The book was written by J. R. R. Tolkien himself.",
        "You will find more at example.com/a.b today.",
        "I was not sure about it... but then I went.",
        "I was not sure about it… but then I went.",
        "It costs 3,000 euros at 10:30 in the morning.",
        "The version that you need is v1.2.3 or later.",
    ],
)
def test_a_full_stop_that_ends_no_sentence(whole: str) -> None:
    assert cut(whole + " And then it was over.", first=False) == [whole + " ", "And then it was over."]


@pytest.mark.parametrize(
    "whole",
    [
        'He said it aloud: "Go home now."',
        "He said it (and he meant every word of it.)",
        "**Nothing is as it seems to be.**",
        "Did you really mean that?!",
        "And so it went on and on...",
        "It happened in the year 2024.",
        "My answer to that is no.",
        "Nobody but you and I.",
        "This is a line without a mark\n",
    ],
)
def test_a_sentence_ends_with_what_closes_it(whole: str) -> None:
    blank = "" if whole.endswith("\n") else " "
    assert cut(f"{whole}{blank}Then he left.", first=False) == [whole + blank, "Then he left."]


def test_list_items_stay_with_their_numbers() -> None:
    assert cut("Here are the steps\n1. Open the box at the top\n2. Take out the lamp\n", first=False) == [
        "Here are the steps\n1. Open the box at the top\n",
        "2. Take out the lamp\n",
    ]


def test_a_mark_is_certain_only_when_the_next_character_is_known() -> None:
    chunker = Chunker(first=False)
    assert chunker.push("The answer that you want is 3.") == []
    assert chunker.push("5") == []
    assert chunker.push(". ") == ["The answer that you want is 3.5. "]
    assert chunker.push("It is a long story...") == []
    assert chunker.push(" ") == []
    assert chunker.push("A") == ["It is a long story... "]
    assert chunker.flush() == ["A"]
    for char in "It is a long story... \n":
        assert chunker.push(char) == []
    assert chunker.push("So") == ["It is a long story... "]


def test_a_first_chunk_without_marks_is_cut_at_a_blank() -> None:
    chunks = cut("word " * 40)
    assert chunks[0] == "word " * 12
    assert "".join(chunks) == "word " * 40


def test_a_long_sentence_is_cut_at_a_clause_before_a_blank_before_anywhere() -> None:
    assert cut("word " * 30 + "word, " + "word " * 30, first=False)[0] == "word " * 30 + "word, "
    assert [len(chunk) for chunk in cut("x" * 500, first=False)] == [240, 240, 20]


def test_after_a_flush_another_reply_begins() -> None:
    chunker = Chunker()
    assert chunker.push("One reply, and no more. ") == ["One reply, and no more. "]
    assert chunker.flush() == []
    chunker.push("The rest")
    assert chunker.flush() == ["The rest"]
    assert chunker.flush() == []
    assert chunker.push("Of course I can, and more") == ["Of course I can, "]


def test_a_long_reply_at_once_takes_time_in_proportion() -> None:
    began = time.perf_counter()
    for text in ("A sentence of some length. " * 8_000, "." * 200_000, "a" * 200_000):
        assert "".join(cut(text)) == text
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("**Hello** _world_, it's `fine`.", "Hello world, it's fine."),
        ("# Title\n- one\n- [x] two\n> three\n---\n", "Title one two three"),
        ("Look:\n```python\nprint(1)\n```\nDone.", "Look: Done."),
        ("```\nnever closed", ""),
        ("See [the page](https://x.org/a?b=c) or https://www.example.com/a/b.", "See the page or example.com."),
        ("Great 😀, fine 👍🏽 job 👨‍👩‍👧 1️⃣!", "Great, fine job 1!"),
        ("2 * 3 = 6 and snake_case at 5°C for 3€", "2 times 3 = 6 and snake_case at 5°C for 3€"),
        ("a | b | c", "a b c"),
        ("<b>bold</b> and 3 < 5", "bold and 3 < 5"),
        ("😀", ""),
        ("***", ""),
        (" \n\t", ""),
        ("", ""),
        ("NUL\x00 and \ud800 half", "NUL and half"),
    ],
)
def test_speakable(text: str, spoken: str) -> None:
    assert speakable(text) == spoken


@settings(deadline=None)
@given(st.text(max_size=300) | st.text("*_`~[]()<>!#-| \nahttps:/.", max_size=300))
def test_what_is_speakable_is_one_clean_line(text: str) -> None:
    spoken = speakable(text)
    spoken.encode()
    assert spoken == " ".join(spoken.split())
    assert "`" not in spoken


def test_speakable_is_not_slowed_down_by_hostile_marks() -> None:
    began = time.perf_counter()
    for mark in ("[", "![", "](", "*", "_", "`", "<a", "- ", "http://", "www.", "_a", "a_", "#", "1*"):
        speakable(mark * (8_000 // len(mark)))
        speakable(mark * (8_000 // len(mark)) + "a")
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Hello there. How are", "Hello there. "),
        ("Hello there. How are you?", "Hello there. How are you?"),
        ("One.\n\nTwo", "One.\n\n"),
        ("It is cold. It is 3.", "It is cold. "),
        ("It is cold. Ask Dr.", "It is cold. "),
        ("今日は。明日", "今日は。"),
        ("no end", ""),
        ("\n", ""),
        ("", ""),
    ],
)
def test_last_whole_sentence(text: str, kept: str) -> None:
    assert text[: last_whole_sentence(text)] == kept


@settings(deadline=None)
@given(replies)
def test_the_last_whole_sentence_is_a_part_of_the_text(text: str) -> None:
    assert 0 <= last_whole_sentence(text) <= len(text)
