"""`meshag serve STAGE`: one service."""

import argparse
import gc
import os
import sys

from meshag.commands.common import add_port_base, loop_factory, number, settings_from
from meshag.commands.signals import end_at_once, handled
from meshag.subjects import STAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag serve`."""
    parser.add_argument("stage", choices=STAGES, help="which service")
    parser.add_argument("--port", type=number(1, 65535), help="HTTP port (default: the stage's own, 8081 to 8084)")
    add_port_base(parser)
    parser.epilog = (
        "example:\n  meshag serve stt\n"
        "  NATS_URL=nats://10.0.0.5:4222 VALKEY_URL=valkey://10.0.0.6:6379/0 meshag serve llm --port 9000"
    )


def run(args: argparse.Namespace) -> int:
    """Run the service until a signal ends it."""
    with handled(end_at_once):  # until the service has something to hand over
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's wheel reports to its maker unless told not to
    gc.disable()  # what is imported stays: looking for garbage in it meanwhile costs a tenth of the start
    import asyncio

    from meshag.api.serve import serve
    from meshag.observe.logs import configure

    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    port = args.port or settings.port(args.stage)

    async def main() -> None:
        gc.collect()
        gc.freeze()  # what was imported is never garbage: later collections need not look at it
        gc.enable()
        await serve(args.stage, settings, port)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # else Python waits for every thread, also for one that loads a model

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
    return 0
