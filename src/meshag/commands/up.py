"""`meshag up`: the whole mesh on this machine."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from meshag import clock
from meshag.commands.common import add_port_base, settings_from
from meshag.commands.signals import STOP_BOUND_S, end_at_once, handled, stopping
from meshag.embedded.mesh import DEFAULT_WORKERS, Mesh, Service
from meshag.errors import ConfigError, ModelError
from meshag.settings import Settings
from meshag.subjects import STAGES, Stage

ENGINES = ("onnxruntime", "xllamacpp", "hibari")
"""Import names of what runs the local models."""

SAYS = {"stt": "hears", "llm": "answers", "tts": "speaks"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag up`."""
    add_mesh_arguments(parser)
    parser.epilog = (
        "NATS_URL and VALKEY_URL, where set, take the place of the embedded servers.\n"
        f"Ctrl-C or SIGTERM stops all of it, after {STOP_BOUND_S:.0f} s at the latest; a second Ctrl-C kills it.\n\n"
        "examples:\n  meshag up\n  meshag up --port-base 9081 --workers llm=1 --data-dir ./data"
    )


def add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    """What the mesh is to be like."""
    add_port_base(parser)
    parser.add_argument(
        "--workers", default="", metavar="LIST", help="how many of each: stt=2,llm=2,tts=2,transport=1 (the default)"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="keep the servers' data here (default: a temporary directory)"
    )
    parser.add_argument("--no-pull", action="store_true", help="do not fetch local models that are missing")


def run(args: argparse.Namespace) -> int:
    """Start everything, tend it, stop it on a signal."""
    is_up = False
    mesh = prepare(args)
    with stopping() as signals:
        try:
            with started(mesh, signals):
                is_up = True
                begin_spares(mesh)
                _say_servers(mesh)
                print("\nStop it with Ctrl-C.", flush=True)
                tend(mesh, print)
        except KeyboardInterrupt:
            pass
    return 0 if is_up or signals.came != signal.SIGINT else 130


def prepare(args: argparse.Namespace) -> Mesh:
    """The mesh that the command line asks for, its models fetched."""
    settings = settings_from(args)
    workers = parse_workers(args.workers)
    if not args.no_pull:
        pull(settings)
    return Mesh(settings, workers=workers, data_dir=args.data_dir)


def pull(settings: Settings) -> None:
    """Fetch the local models that are missing. Raises ModelError."""
    with handled(end_at_once):
        from meshag.models import catalogue, store
        from meshag.models.progress import Meter
        from meshag.models.pull import pull_default

        wanted = (catalogue.DEFAULT_VAD, catalogue.DEFAULT_STT, catalogue.DEFAULT_LLM)
        if all(store.is_present(catalogue.find(name), settings.cache_dir) for name in wanted):
            return
    if missing := [name for name in ENGINES if not find_spec(name)]:
        print(f"No local models: {', '.join(missing)} not installed. Get them with: pip install 'meshag[local]'")
        return
    try:
        pull_default(settings.cache_dir, Meter(sys.stderr))
    except ModelError as error:
        raise ModelError(f"{error}\n  To start without: --no-pull", code=error.code) from error


class started:  # noqa: N801 - reads as a statement
    """`with started(mesh, signals)`: servers and the first worker of each stage run and are ready; at the end none.

    A signal ends whatever the mesh waits for, by KeyboardInterrupt.
    """

    def __init__(self, mesh: Mesh, signals: stopping) -> None:
        self._mesh = mesh
        mesh.pause, signals.kill = signals.pause, mesh.kill

    def __enter__(self) -> Mesh:
        try:
            _begin(self._mesh)
        except BaseException:
            self._mesh.stop()
            raise
        return self._mesh

    def __exit__(self, *_: object) -> None:
        self._mesh.stop()


def _begin(mesh: Mesh) -> None:
    """Start the servers and one worker of each stage; say which is ready when, and what will answer."""
    print("Starting the mesh: nats-server, valkey-server and the services …", flush=True)
    began_s = clock.monotonic_s()
    mesh.start(spares=False)
    mesh.wait_ready(lambda service: _say_ready(service, began_s))
    print(f"\nThe mesh is up: {shown(mesh.url)}", flush=True)
    if Settings(one_machine=True).keys_required:
        _say_key(mesh)
    for stage, verb in SAYS.items():
        providers = mesh.providers(stage)  # type: ignore[arg-type]
        able = [f"{name} ({found['detail']})" if found["detail"] else name for name, found in providers.items()]
        able = [text for text, found in zip(able, providers.values(), strict=True) if found["available"]]
        if able:
            print(f"  {stage} {verb:<8} {', '.join(able)}")
        else:
            why = "; ".join(f"{name}: {found['detail']}" for name, found in providers.items()) or "none is installed"
            print(f"  {stage} {verb:<8} NOTHING, so sessions are refused. {why}")
    print("  A stronger model: docs/models.md", flush=True)


def _say_servers(mesh: Mesh) -> None:
    """How other commands, which do not ask a service, find this mesh."""
    if path := mesh.tell_servers():
        print(f"\nFor `meshag record` and `meshag key`, in another terminal: . {shlex.quote(str(path))}", flush=True)


def _say_key(mesh: Mesh) -> None:
    """Make and show the first API key of a mesh that wants one: nobody else knows the address of its Valkey."""
    from meshag.commands.key import first_key

    if key := first_key(mesh):
        print(f"  API key: {key}\n    shown this once, see docs/access.md", flush=True)
        os.environ.setdefault("MESHAG_API_KEY", key)  # for the demonstration


def begin_spares(mesh: Mesh) -> None:
    """Start the further workers, so that one of each may die."""
    before = len(mesh.services)
    mesh.start_spares()
    if len(mesh.services) > before:
        print(f"\nStarting {len(mesh.services) - before} spare workers, which take over when one dies …", flush=True)
        began_s = clock.monotonic_s()
        spares = mesh.services[before:]
        mesh.wait_ready(lambda service: _say_ready(service, began_s) if service in spares else None)


def _say_ready(service: Service, began_s: float) -> None:
    seconds = clock.monotonic_s() - began_s
    print(
        f"  {service.name:<10} port {service.port:<6} pid {service.child.pid:<8} ready in {seconds:.1f} s", flush=True
    )


def tend(mesh: Mesh, say: Callable[[str], object]) -> None:
    """Restart what dies until KeyboardInterrupt."""
    while True:
        tend_once(mesh, say)
        mesh.pause(0.1)


def tend_once(mesh: Mesh, say: Callable[[str], object]) -> None:
    """Restart what has died."""
    for name in mesh.tend():
        pid = next((f", pid {service.child.pid}" for service in mesh.services if service.name == name), "")
        say(f"  -- {name} died and is started again{pid} --")


def shown(url: str) -> str:
    """An address as people write it."""
    return url.replace("//127.0.0.1:", "//localhost:").replace("//0.0.0.0:", "//localhost:")


def parse_workers(text: str) -> dict[Stage, int]:
    """`stt=2,llm=1` as a mapping. Raises ConfigError."""
    found: dict[Stage, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition("=")
        if name not in STAGES or not number.isascii() or not number.isdecimal() or not 1 <= int(number) <= 32:
            listed = ",".join(f"{stage}={count}" for stage, count in DEFAULT_WORKERS.items())
            raise ConfigError(
                f"--workers: '{item}' is not a stage and a number from 1 to 32", path="--workers", fix=f"as in {listed}"
            )
        found[name] = int(number)
    return found
