"""A stage of a session that is let go of while it is being opened: its session ended, or another was faster."""

import asyncio
from typing import Any, ClassVar, cast

import pytest

from meshag.errors import OverloadError
from meshag.frames import AnyFrame
from meshag.ids import WorkerId, new_session_id
from meshag.recording.stand_ins import TapeBus, TapeStore, TapeWorker
from meshag.sessions.config import SessionRequest
from meshag.sessions.store import Lease, SessionRecord
from meshag.stages.owned import Owned
from meshag.subjects import Stage

pytestmark = pytest.mark.unit

WORKER = WorkerId("a" * 13)


class Slow(Owned):
    """Takes its time to get ready, and works for ever."""

    stage: ClassVar[Stage] = "tts"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.warming, self.warm_now = asyncio.Event(), asyncio.Event()
        self.fails = False
        self.work: asyncio.Task[None] | None = None
        self.finished = 0

    @property
    def quiet(self) -> bool:
        return True

    async def warm(self) -> None:
        self.warming.set()
        await self.warm_now.wait()
        if self.fails:
            raise OverloadError("no room")
        self.work = self.spawn(self._work())

    async def _work(self) -> None:
        await asyncio.Event().wait()

    async def resume(self) -> None:
        pass

    def on_frame(self, frame: AnyFrame) -> None:
        pass

    async def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def bus() -> TapeBus:
    return TapeBus()


@pytest.fixture
def stage(bus: TapeBus) -> Slow:
    record = SessionRecord(new_session_id(), 1, SessionRequest(), "created", 0.0, 60)
    worker = TapeWorker(WORKER, bus, TapeStore(record, {}), None, None)
    return Slow(cast(Any, worker), record, Lease(WORKER, 1))


async def test_nothing_of_it_is_left(stage: Slow, bus: TapeBus) -> None:
    opening = asyncio.create_task(stage.open(takeover=False))
    await stage.warming.wait()
    await stage.aclose()
    stage.warm_now.set()
    await opening
    assert stage.closed
    assert stage.work is not None
    assert stage.work.cancelled()
    assert bus.listening == []
    assert stage.finished == 1
    await stage.aclose()
    assert stage.finished == 1


async def test_nor_when_opening_it_fails_too(stage: Slow, bus: TapeBus) -> None:
    opening = asyncio.create_task(stage.open(takeover=False))
    await stage.warming.wait()
    await stage.aclose()
    stage.fails = True
    stage.warm_now.set()
    with pytest.raises(OverloadError):
        await opening
    assert (stage.closed, stage.finished, bus.listening) == (True, 1, [])


async def test_what_is_open_is_closed_at_once(stage: Slow, bus: TapeBus) -> None:
    stage.warm_now.set()
    await stage.open(takeover=False)
    assert not stage.closed
    assert bus.listening
    await stage.aclose()
    assert stage.work is not None
    assert stage.work.cancelled()
    assert (stage.finished, bus.listening) == (1, [])
