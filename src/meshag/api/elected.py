"""Work that one transport worker does for the whole fleet: the first by name of those alive, like the breakers' prober.

For a moment there may be two, or nobody: what is done so must bear it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from meshag import clock
from meshag.sessions.fleet import MISSED_BEATS
from meshag.stages.worker import Worker

log = structlog.get_logger("meshag.elected")

LOOK_S = 0.1

SETTLE_S = 1.0
"""A worker has to be the first for so long: one that has just started has not heard of the others yet."""

AGAIN_S = 2.0
"""Work that broke is begun again after so long."""


def is_first(worker: Worker) -> bool:
    """Whether the fleet's work is this worker's, as far as it knows."""
    if not worker.sure():
        return False
    able = [one.worker for one in worker.fleet.workers(worker.stage) if not one.draining]
    mine = [] if worker.draining and able else [worker.worker_id]
    return worker.worker_id == min([*able, *mine])


async def while_elected(worker: Worker, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, which has no end, whenever this worker is the first; cancel it when it no longer is."""
    frozen_s = worker.settings.heartbeat_ms * MISSED_BEATS / 1000
    since_s = looked_s = clock.monotonic_s()
    running: asyncio.Future[None] | None = None
    try:
        while True:
            await asyncio.sleep(LOOK_S)
            before_s, looked_s = looked_s, clock.monotonic_s()
            if not is_first(worker) or looked_s - before_s > frozen_s:  # frozen: another may have taken it over
                since_s = clock.monotonic_s()
                if running is not None:
                    log.info("not_elected", work=name)
                    await _stop(running)
                    running = None
            elif running is not None and running.done():
                error = running.exception()
                log.error("elected_work_broke", work=name, error=type(error).__name__, exc_info=error)
                running, since_s = None, clock.monotonic_s() - SETTLE_S + AGAIN_S
            elif running is None and clock.monotonic_s() - since_s >= SETTLE_S:
                log.info("elected", work=name)
                running = asyncio.ensure_future(work())
    finally:
        if running is not None:
            await _stop(running)


async def _stop(running: "asyncio.Future[None]") -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
