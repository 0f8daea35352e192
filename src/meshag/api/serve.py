"""One service: a worker and its HTTP face, until a signal ends it."""

import asyncio
import secrets
import signal

import structlog
from aiohttp import web

from meshag.api import conversation, page, providers, sessions, stream
from meshag.api.service import service
from meshag.connectors.registry import Registry
from meshag.errors import MeshError
from meshag.settings import Settings
from meshag.stages.owned import Make
from meshag.stages.transport import Switchboard
from meshag.stages.worker import Worker
from meshag.subjects import Stage

log = structlog.get_logger("meshag.serve")


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
    return [route for part in (sessions, conversation, stream, providers, page) for route in part.routes()]


async def serve(stage: Stage, settings: Settings, port: int) -> None:
    """Run the service until SIGTERM, then drain; SIGINT ends it at once. Raises MeshError when it cannot start."""
    worker = Worker(stage, settings, Registry(settings.connectors), maker(stage))
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end_now() -> None:
        at_once.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, end_now)
    switchboard = None
    runner = None
    try:
        await worker.connect()
        if stage == "transport":
            switchboard = Switchboard(worker)
            app = service(worker, routes())
            app[stream.SWITCHBOARD] = switchboard
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
        log.info("service_ready", stage=stage, url=f"http://{settings.host}:{port}")
        await stop.wait()
        if not at_once.is_set():
            draining = asyncio.create_task(worker.drain())
            hurry = asyncio.create_task(at_once.wait())
            await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            hurry.cancel()
    finally:
        if switchboard is not None:
            await switchboard.aclose()
        await worker.aclose()
        if runner is not None:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise MeshError(
            f"port {port} on {host} is taken: choose others with --port-base or MESHAG_PORT_BASE", code="port_taken"
        ) from error
