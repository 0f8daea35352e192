"""A change of a configuration that another worker's changes always come before."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshag.api import sessions
from meshag.api.problems import problem_of
from meshag.errors import StoreError
from meshag.ids import SessionId, new_session_id
from meshag.sessions.config import SessionRequest
from meshag.sessions.store import SessionRecord

pytestmark = pytest.mark.unit


class Contended:
    """A store in which somebody else is faster, so many times."""

    def __init__(self, times: int) -> None:
        self.times, self.version = times, 1

    async def load(self, session: SessionId) -> SessionRecord:
        return SessionRecord(session, self.version, SessionRequest(session_name=f"v{self.version}"), "live", 0.0, 60)

    async def change_config(self, record: SessionRecord, request: SessionRequest) -> SessionRecord:
        assert record.version == self.version
        self.version += 1
        if self.times:
            self.times -= 1
            raise StoreError("changed", code="session_changed")
        return SessionRecord(record.id, self.version, request, "live", 0.0, 60)


async def patched(times: int, monkeypatch: pytest.MonkeyPatch) -> tuple[SessionRecord, SessionRecord]:
    monkeypatch.setattr(sessions, "check", lambda worker, asked: None)
    monkeypatch.setattr(sessions, "CHANGE_WAIT_S", 0.0)
    worker: Any = SimpleNamespace(store=Contended(times))
    return await sessions._patch(worker, new_session_id(), {"max_participants": 7})


async def test_it_is_made_of_what_the_other_one_has_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = await patched(3, monkeypatch)
    assert (before.version, after.version) == (4, 5)
    assert after.request.max_participants == 7
    assert after.request.session_name == "v4"


async def test_its_sender_is_told_when_it_never_was_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError) as raised:
        await patched(sessions.CHANGE_TRIES, monkeypatch)
    answer = problem_of(raised.value)
    assert answer.status == 409
    assert json.loads(cast(str, answer.text))["code"] == "session_changed"
    assert answer.headers["Retry-After"] == "1"
