"""`meshag run`: the mesh, and a conversation through it. On a terminal it stays up afterwards."""

import argparse
import asyncio
import signal
import sys

from meshag.commands import demo, up
from meshag.commands.signals import stopping
from meshag.embedded.mesh import Mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag run`."""
    up.add_mesh_arguments(parser)
    demo.add_demo_arguments(parser)
    parser.add_argument("--stay", action="store_true", help="stay up after the demonstration, terminal or not")
    parser.epilog = (
        'examples:\n  meshag run\n  meshag run --ask "What is the capital of France?"\n'
        "  meshag run --wav my-question.wav --port-base 9081\n\n"
        "exit status: 0 it answered; 1 an answer was empty, or a stage failed"
    )


def run(args: argparse.Namespace) -> int:
    """Start, demonstrate, stay. Exit status 1 when an answer was empty or a stage failed."""
    script = demo.prepare(args)
    stays = args.stay or sys.stdout.isatty()
    status = None
    mesh = up.prepare(args)
    with stopping() as signals:
        try:
            with up.started(mesh, signals):
                show = demo.Show()
                status = asyncio.run(_demonstrate(mesh, script, show, signals))
                if status is not None:
                    demo.say_next(show, script.out, "" if stays else "run", demo.where(args))
                if status == 0 and stays:
                    _stay(mesh, args)
        except KeyboardInterrupt:
            pass
    return status if status is not None else 128 + (signals.came or signal.SIGINT)


async def _demonstrate(mesh: Mesh, script: demo.Script, show: demo.Show, signals: stopping) -> int | None:
    """The conversation, while what dies is started again. None: a signal ended it."""

    async def tend() -> None:
        while True:
            up.tend_once(mesh, show.line)
            await asyncio.sleep(0.1)

    tending = asyncio.create_task(tend())
    talking = asyncio.create_task(demo.until_signal(demo.converse(mesh.url, script, show), signals))
    try:
        await asyncio.wait({talking, tending}, return_when=asyncio.FIRST_COMPLETED)
        if not talking.done():
            tending.result()  # it raises what ended it
        return await talking
    finally:
        for task in (tending, talking):
            task.cancel()
        await asyncio.gather(tending, talking, return_exceptions=True)


def _stay(mesh: Mesh, args: argparse.Namespace) -> None:
    """Be there until a signal comes."""
    up.begin_spares(mesh)
    print(f"\nThe mesh stays up: talk to it at {up.shown(mesh.url)} (Ctrl-C ends it). In another terminal:")
    demo.say_commands([(f'demo{demo.where(args)} --ask "What is the capital of France?"', "type a question")])
    print(f"  kill -9 {mesh.find('tts').child.pid}   while it speaks: another worker goes on", flush=True)
    up.tend(mesh, print)
