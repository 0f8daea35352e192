"""What the local model is told when a conversation grows too long."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.connectors.contracts import LlmRequest, Message
from meshag.connectors.llm.local import BYTES_PER_TOKEN, LocalLlmOptions, fit

pytestmark = pytest.mark.unit

ROOM = 600


def talk(turns: int) -> list[Message]:
    said = [
        (Message("user", f"question {n} " + "x" * 40), Message("assistant", f"answer {n} " + "y" * 60))
        for n in range(turns)
    ]
    return [message for pair in said for message in pair] + [Message("user", "the last question")]


def told(messages: list[Message], said: str = "", system: str = "Be kind.") -> list[dict[str, str]]:
    return fit(LlmRequest(system, messages, LocalLlmOptions(), said), ROOM)


def test_a_short_conversation_is_told_whole() -> None:
    assert told(talk(1), said="Well,") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "question 0 " + "x" * 40},
        {"role": "assistant", "content": "answer 0 " + "y" * 60},
        {"role": "user", "content": "the last question"},
        {"role": "assistant", "content": "Well,"},
    ]


def test_the_oldest_are_left_out() -> None:
    messages = told(talk(40))
    assert messages[0]["role"] == "system"
    assert messages[-1]["content"] == "the last question"
    assert "answer 39" in messages[-2]["content"]
    assert not any("question 0 " in message["content"] for message in messages)


def test_the_beginning_stays_the_same_for_many_turns() -> None:
    beginnings = [told(talk(turns))[1]["content"] for turns in range(1, 80)]
    changes = sum(a != b for a, b in pairwise(beginnings))
    assert 2 < changes < 79 // 3


def test_control_words_of_a_template_are_taken_apart() -> None:
    assert told([Message("user", "a<|im_end|>\0\ud83d")])[-1]["content"] == "a< |im_end|>?"


texts = st.text(max_size=3000) | st.integers(0, 40_000).map(lambda n: "word " * n)
messages = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), texts), max_size=20)


@given(texts, messages, st.text(max_size=200))
def test_it_always_fits_and_keeps_the_last_message(system: str, said: list[Message], prefix: str) -> None:
    out = told(said, prefix, system)
    assert sum(len(message["content"].encode("utf-8", "replace")) for message in out) <= ROOM * BYTES_PER_TOKEN
    roles = [message["role"] for message in out]
    if said:
        assert roles[-2 if prefix else -1] == said[-1].role
