"""Following a session: each frame once, from the journal; what the journal did not take as it was heard."""

import asyncio
import io
from typing import Any

import pytest

from meshag.frames import AnyFrame, SessionEnded, TextIn, encode
from meshag.ids import SessionId
from meshag.recording.file import Header, Recording, Writer, load
from meshag.recording.recorder import Recorder
from meshag.recording.stand_ins import TapeBus, TapeStore
from meshag.recording.virtual import run
from meshag.sessions.config import SessionRequest
from meshag.sessions.store import SessionRecord

pytestmark = pytest.mark.unit

SESSION = SessionId("a" * 26)
SUBJECT = f"text.input.{SESSION}"


def said(text: str, seq: int) -> AnyFrame:
    return TextIn(turn=1, text=text, seq=seq, epoch=1)


class SlowStore(TapeStore):
    """A Valkey that takes its time."""

    async def history(self, *args: Any) -> list[bytes]:
        await asyncio.sleep(7)
        return await super().history(*args)


async def followed(
    bus: TapeBus, *, stop_after_s: float | None = None, kind: type[TapeStore] = TapeStore, after_s: float = 0.1
) -> tuple[Recording, str, int]:
    record = SessionRecord(SESSION, 1, SessionRequest())
    store: Any = kind(record, {})
    there: Any = bus
    file = io.BytesIO()
    writer = Writer(file, Header(SESSION))
    recorder = Recorder(there, store, SESSION, writer)
    following = asyncio.create_task(recorder.follow())
    await asyncio.sleep(after_s)
    await bus.publish(SUBJECT, encode(said("stored", 1)))
    bus._deliver(SUBJECT, encode(said("stored", 1)), {})  # sent again: heard twice, stored once
    bus._deliver(SUBJECT, encode(said("heard only", 2)), {})
    await asyncio.sleep(0.1)
    if stop_after_s is None:
        await bus.publish(f"control.{SESSION}", encode(SessionEnded(reason="expired")))
    else:
        await asyncio.sleep(stop_after_s)
        recorder.stop()
    reason = await following
    writer.close(reason)
    file.seek(0)
    return load(file, "file"), reason, recorder.missed


def texts(of: Recording) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in of.frames:
        if isinstance(frame := one.frame(), TextIn):
            found.setdefault(frame.text, []).append(one.sequence)
    return found


def test_until_its_end_with_what_was_there_before() -> None:
    bus = TapeBus()
    bus.keep(SUBJECT, encode(said("before", 0)), 5)
    recording, reason, missed = run(followed(bus), now_ns=10**18)
    assert texts(recording) == {"before": [1], "stored": [2], "heard only": [0]}
    assert (reason, missed, recording.cut_off) == ("expired", 1, False)
    assert [one.version for one in recording.configs] == [1]
    assert not bus.listening


def test_what_the_journal_did_not_take_is_written_while_the_session_goes_on() -> None:
    recording, reason, missed = run(followed(TapeBus(), stop_after_s=20), now_ns=10**18)
    assert texts(recording) == {"stored": [1], "heard only": [0]}
    assert (reason, missed) == ("stopped", 1)


def test_what_has_only_not_been_looked_for_does_not_count_as_missed() -> None:
    recording, _, missed = run(followed(TapeBus(), stop_after_s=40, kind=SlowStore, after_s=9), now_ns=10**18)
    assert texts(recording) == {"stored": [1], "heard only": [0]}
    assert missed == 1
