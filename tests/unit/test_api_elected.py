"""One worker of all does the fleet's work: the first by name, when it is sure of itself."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshag.api import elected
from meshag.api.elected import is_first, while_elected

pytestmark = pytest.mark.unit


def worker(name: str, *others: str, draining: bool = False, sure: bool = True, leaving: tuple[str, ...] = ()) -> Any:
    alive = [SimpleNamespace(worker=other, draining=other in leaving) for other in others]
    return cast(
        "Any",
        SimpleNamespace(
            worker_id=name,
            stage="transport",
            draining=draining,
            sure=lambda: sure,
            fleet=SimpleNamespace(workers=lambda stage: alive),
            settings=SimpleNamespace(heartbeat_ms=1_000),
        ),
    )


def test_the_first_by_name_of_those_who_stay() -> None:
    assert is_first(worker("a", "b", "c"))
    assert not is_first(worker("b", "a", "c"))
    assert is_first(worker("b", "a", "c", leaving=("a",)))
    assert is_first(worker("a"))
    assert not is_first(worker("a", sure=False))


def test_one_who_leaves_does_it_only_while_nobody_else_can() -> None:
    assert not is_first(worker("a", "b", draining=True))
    assert is_first(worker("a", draining=True))
    assert is_first(worker("a", "b", draining=True, leaving=("b",)))


async def test_work_is_begun_stopped_and_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK_S", 0.005), ("SETTLE_S", 0.02), ("AGAIN_S", 0.02)):
        monkeypatch.setattr(elected, name, seconds)
    me, began, ended = worker("b"), 0, 0

    async def work() -> None:
        nonlocal began, ended
        began += 1
        try:
            if began == 3:
                raise RuntimeError("it broke")
            await asyncio.Event().wait()
        finally:
            ended += 1

    async def until(runs: int, over: int) -> None:
        async with asyncio.timeout(10):
            while (began, ended) != (runs, over):
                await asyncio.sleep(0.005)

    task = asyncio.create_task(while_elected(me, "test", work))
    await until(1, 0)
    me.fleet.workers = lambda stage: [SimpleNamespace(worker="a", draining=False)]
    await until(1, 1)
    await asyncio.sleep(0.1)
    assert began == 1
    me.fleet.workers = lambda stage: []
    await until(2, 1)
    me.sure = lambda: False
    await until(2, 2)
    me.sure = lambda: True
    await until(4, 3)  # the third broke at once
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (began, ended) == (4, 4)
