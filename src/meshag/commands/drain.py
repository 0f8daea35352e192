"""`meshag drain STAGE|STAGE/WORKER`: have workers of a running mesh hand over and end, one after the other."""

import argparse
from collections.abc import Callable

from meshag import clock
from meshag.api.schemas import FleetWorker
from meshag.client import ApiError, Client, Unreachable
from meshag.commands.common import add_url, client, number, said_here
from meshag.errors import ConfigError, MeshError
from meshag.subjects import STAGES

LOOK_S = 0.2
"""How often it is asked who is there."""

WAIT_S = 60
"""How long one worker may take to leave, and another to come in its place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag drain`."""
    parser.epilog = (
        "examples:\n  meshag drain                 who is there\n  meshag drain stt\n  meshag drain tts/WORKER"
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="STAGE[/WORKER]",
        help="stt, llm, tts or transport: all its workers, one after the other; or one of them",
    )
    parser.add_argument(
        "--wait",
        type=number(0, 3600),
        default=WAIT_S,
        metavar="S",
        help=f"how long one may take to leave, and another to take its place (default {WAIT_S} s)",
    )
    add_url(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    mesh = client(args)
    with said_here():
        there = mesh.workers().workers
    if args.what is None:
        for one in there:
            state = "draining" if one.draining else f"{one.sessions} of {one.capacity} sessions"
            print(f"{one.stage}/{one.worker}  {state}")
        return 0
    stage, _, worker = args.what.partition("/")
    chosen = [one for one in there if one.stage == stage and worker in ("", one.worker)]
    if stage not in STAGES or not chosen:
        listed = ", ".join(f"{one.stage}/{one.worker}" for one in there)
        raise ConfigError(f"there is no worker '{args.what}'", path="STAGE/WORKER", fix=f"one of {listed}")
    for one in chosen:
        _replace(mesh, one, sum(other.stage == stage for other in there), args.wait)
    return 0


def _replace(mesh: Client, one: FleetWorker, before: int, wait_s: float) -> None:
    """Drain one worker, and wait until there are as many as before. Raises MeshError when there are not in time."""
    name, began_s = f"{one.stage}/{one.worker}", clock.monotonic_s()
    with said_here():
        mesh.drain(one.worker)
    _wait(mesh, lambda there: all(other.worker != one.worker for other in there), wait_s, f"{name} does not leave")
    left_s = clock.monotonic_s() - began_s
    print(f"{name} has left after {left_s:.1f} s", flush=True)
    many = f"no other {one.stage} worker has come in place of {name}: start one, then drain the next"
    _wait(mesh, lambda there: sum(o.stage == one.stage and not o.draining for o in there) >= before, wait_s, many)


def _wait(mesh: Client, done: Callable[[list[FleetWorker]], bool], wait_s: float, problem: str) -> None:
    until_s = clock.monotonic_s() + wait_s
    while True:
        try:
            if done(mesh.workers().workers):
                return
        except (ApiError, Unreachable):
            pass  # the service that is asked may be the one that leaves
        if clock.monotonic_s() >= until_s:
            raise MeshError(problem, code="not_drained")
        clock.sleep_s(LOOK_S)
