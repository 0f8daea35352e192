"""One service: a worker and its HTTP face, until a signal ends it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from aiohttp import web

from meshag.api import (
    conversation,
    daily,
    events,
    openapi,
    page,
    participants,
    providers,
    rooms,
    sessions,
    stream,
    workers,
)
from meshag.api.elected import while_elected
from meshag.api.feed import Feed
from meshag.api.lifecycle import ATTENDANCE
from meshag.api.service import service
from meshag.api.stop import CLOSE_BOUND_S, Stop
from meshag.api.upkeep import keep_up
from meshag.api.webhooks import Deliveries, Endpoint
from meshag.connectors.registry import Registry
from meshag.errors import MeshError
from meshag.settings import Settings
from meshag.stages.attending import Attendance
from meshag.stages.owned import Make
from meshag.stages.transport import Switchboard
from meshag.stages.worker import LAST_CALL_MS, Worker
from meshag.subjects import Stage

log = structlog.get_logger("meshag.serve")

DRAIN_SLACK_S = 1.0
"""A drain that hangs, in a server that does not answer say, is given up so long after its own bound."""


def maker(stage: Stage) -> Make | None:
    """What answers a stage's claims; None for transport. Imports that stage and no other."""
    if stage == "stt":
        from meshag.stages.stt import SttSession

        return SttSession
    if stage == "llm":
        from meshag.stages.llm import LlmSession

        return LlmSession
    if stage == "tts":
        from meshag.stages.tts import TtsSession

        return TtsSession
    return None


def routes() -> list[web.RouteDef]:
    """Everything that the transport service answers beside what every service does."""
    parts = (rooms, sessions, conversation, participants, stream, events, daily, providers, workers, openapi, page)
    return [route for part in parts for route in part.routes()]


async def serve(stage: Stage, settings: Settings, port: int) -> None:
    """Run the service until SIGTERM, then drain; SIGINT ends it at once. Raises MeshError when it cannot start.

    Signals that come before it is ready are the caller's: nothing is to be handed over then.
    """
    endpoint = Endpoint.of(settings) if stage == "transport" else None
    worker = Worker(stage, settings, Registry(settings.connectors), maker(stage))
    stop = Stop()
    switchboard = attendance = feed = None
    shared: list[asyncio.Task[None]] = []
    runner = None
    try:
        await worker.connect()
        if stage == "transport":
            if settings.keys_required and not await worker.store.keys.any():
                log.warning("no_api_key", fix="make one: meshag key create --name NAME; see docs/access.md")
            worker.url = address_of(settings, port)
            switchboard = Switchboard(worker)
            app = service(worker, routes())
            app[stream.SWITCHBOARD] = switchboard
            app[ATTENDANCE] = attendance = Attendance(switchboard)
            app[events.FEED] = feed = Feed(worker.bus)
            await feed.start()
            shared = await shared_work(worker, endpoint)
            app[stream.SECRET] = settings.token_secret or await worker.store.shared_secret(secrets.token_hex(32))
        else:
            app = service(worker)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await runner.setup()
        await _listen(runner, settings.host, port)
        await worker.warm()
        if switchboard is not None:
            await switchboard.start()
        await worker.open_claims()
        if attendance is not None:
            await attendance.start()
        worker.on_drain = lambda: None if stop.asked.is_set() else stop.ask()
        stop.listen()
        log.info("service_ready", stage=stage, url=f"http://{settings.host}:{port}")
        await stop.asked.wait()
        if not stop.pressed.is_set():
            await _drain(worker, stop)
    finally:
        try:
            async with asyncio.timeout(CLOSE_BOUND_S):
                for task in shared:
                    task.cancel()
                await asyncio.gather(*shared, return_exceptions=True)
                if feed is not None:
                    await feed.aclose()
                if attendance is not None:
                    await attendance.aclose()
                if switchboard is not None:
                    await switchboard.aclose()
                await worker.aclose()
                if runner is not None:
                    await runner.cleanup()
        except TimeoutError:
            log.warning("closed_late", stage=stage)


def address_of(settings: Settings, port: int) -> str:
    """Where callers reach a transport service, as the others tell them; empty where nobody can know."""
    if not settings.public_socket_url and settings.host in ("0.0.0.0", "::"):
        return ""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_socket_url or f"ws://{host}:{port}"


async def shared_work(worker: Worker, endpoint: Endpoint | None) -> list[asyncio.Task[None]]:
    """Begin to do what one transport worker does for all, whenever that is this one. Raises BusError."""
    work: dict[str, Callable[[], Awaitable[None]]] = {"upkeep": partial(keep_up, worker)}
    if endpoint is not None:
        deliveries = Deliveries(worker.bus, endpoint)
        await deliveries.declare()
        work["webhooks"] = deliveries.run
    return [asyncio.create_task(while_elected(worker, name, run)) for name, run in work.items()]


async def _drain(worker: Worker, stop: Stop) -> None:
    """Drain until it is done, until the bound, or until somebody presses."""
    bound_s = (worker.settings.drain_ms + LAST_CALL_MS) / 1000 + DRAIN_SLACK_S
    draining = asyncio.create_task(worker.drain())
    pressed = asyncio.create_task(stop.pressed.wait())
    await asyncio.wait([draining, pressed], timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, pressed):
        task.cancel()
    for end in await asyncio.gather(draining, pressed, return_exceptions=True):
        if isinstance(end, Exception):
            log.warning("drain_failed", stage=worker.stage, error=type(end).__name__, exc_info=end)


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise MeshError(
            f"port {port} on {host} is taken: choose others with --port-base or MESHAG_PORT_BASE", code="port_taken"
        ) from error
