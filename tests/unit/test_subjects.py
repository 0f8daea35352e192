"""A session's subjects are its own, and each is captured by the stream that `stream_of` names."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag import subjects
from meshag.ids import SessionId, new_session_id, new_worker_id
from meshag.subjects import DISCONNECTS, MEDIA, PRESENCE_ALL, STREAMS, stream_of

pytestmark = pytest.mark.unit

SESSION = SessionId("abcdefghijklmnopqrstuvwxyz")
ALL = [
    subjects.audio_input(SESSION),
    subjects.text_input(SESSION),
    *(subjects.output(stage, SESSION) for stage in ("stt", "llm", "tts")),
    subjects.control(SESSION),
    subjects.provider("health", "llm", "openai"),
    subjects.provider("switch", "llm", "openai"),
    subjects.event(SESSION),
]


def _captures(pattern: str, subject: str) -> bool:
    return len(pattern.split(".")) == len(subject.split(".")) and fnmatch.fnmatchcase(subject, pattern)


@pytest.mark.parametrize("subject", ALL)
def test_each_subject_is_captured_by_its_stream_and_no_other(subject: str):
    assert [name for name, pattern in STREAMS.items() if _captures(pattern, subject)] == [stream_of(subject)]


def test_every_stream_captures_something():
    assert {stream_of(subject) for subject in ALL} == set(STREAMS)


def test_stream_names_are_such_as_jetstream_takes():
    assert all(re.fullmatch(r"[A-Z_]+", name) for name in STREAMS)


def test_only_audio_is_media():
    assert {STREAMS[name] for name in MEDIA} == {"audio.input.*", "tts.output.*"}


@given(st.builds(new_session_id), st.builds(new_session_id))
def test_two_sessions_share_no_subject(one: str, other: str):
    for make in (subjects.audio_input, subjects.text_input, subjects.control):
        assert make(one) != make(other)  # type: ignore[arg-type]
        assert make(one).endswith(f".{one}")  # type: ignore[arg-type]


def test_what_workers_say_to_each_other_is_not_captured():
    worker = new_worker_id()
    heartbeat = subjects.worker("stt", worker)
    assert _captures(PRESENCE_ALL, heartbeat)
    for subject in (heartbeat, subjects.claim("stt", worker), DISCONNECTS, "_INBOX.x.y"):
        assert not any(_captures(pattern, subject) for pattern in STREAMS.values())


def test_a_claim_is_for_one_worker():
    one, other = new_worker_id(), new_worker_id()
    assert subjects.claim("stt", one) != subjects.claim("stt", other) != subjects.claim("llm", other)
