"""What several commands share."""

import argparse
import asyncio
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshag.client import Client, Unreachable
from meshag.errors import ConfigError, MeshError
from meshag.ids import parse_api_key
from meshag.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")


def settings_from(args: argparse.Namespace) -> Settings:
    """The process's settings, with what the command line says in their place."""
    given = {name: getattr(args, name, None) for name in ("port_base", "host")}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where there is one."""
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def number(least: int, most: int) -> Callable[[str], int]:
    """For argparse: a whole number within bounds."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {least} to {most}")
        return int(text)

    return parse


def add_action(actions: Any, name: str, what: str, epilog: str) -> argparse.ArgumentParser:
    """A subcommand's subcommand. `what`: one line, for the list and for its own help."""
    made: argparse.ArgumentParser = actions.add_parser(
        name, help=what, description=what, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return made


def add_port_base(parser: argparse.ArgumentParser) -> None:
    """`--port-base`: where the services listen."""
    parser.add_argument(
        "--port-base",
        type=number(1, 65000),
        metavar="PORT",
        help="port of the stt service (default 8081); llm, tts and transport are 1, 2 and 3 above it",
    )


def add_url(parser: argparse.ArgumentParser) -> None:
    """`--url` and `--port-base`: which mesh to talk to."""
    parser.add_argument(
        "--url",
        help="the transport service (default: MESHAG_URL, else http://127.0.0.1:8084); where it wants an API key, set "
        "MESHAG_API_KEY",
    )
    add_port_base(parser)


def url_from(args: argparse.Namespace) -> str:
    """The transport service that the command line means, else the one of MESHAG_URL. Raises ConfigError."""
    given, name = args.url, "--url"
    if not given and args.port_base is None:
        given, name = os.environ.get("MESHAG_URL"), "MESHAG_URL"
    if not given:
        settings = settings_from(args)
        return f"http://{_reachable(settings.host)}:{settings.port('transport')}"
    url = str(given).rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{name}: '{url}' is not the address of a service", path=name, fix="as in http://127.0.0.1:8084"
        )
    return url


def _reachable(host: str) -> str:
    """An address of this machine that answers for what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def client(args: argparse.Namespace) -> Client:
    """The API of the mesh that the command line means. Asks once: who types sees what is wrong, and types again."""
    return Client(url_from(args), api_key(), retry=False)


@contextmanager
def said_here() -> Iterator[None]:
    """What the client says of a service that is not there, in the words of the command line."""
    try:
        yield
    except Unreachable as error:
        other = f"Start the mesh with `{program()} up`, or name another with --url or --port-base"
        if error.reason:
            raise MeshError(f"nothing answers at {error.place} ({error.reason}). {other}", code="unreachable") from None
        raise stranger(error.place) from None


def ask(method: str, url: str, body: Any = None, *, timeout_s: float = 30) -> Any:
    """One HTTP exchange in JSON. Raises MeshError with the service's own words, or with what to start."""
    data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
    where = urlsplit(url)
    place = f"{where.scheme}://{where.netloc}"
    with said_here():
        return Client(place, api_key(), timeout_s=timeout_s, retry=False).ask(method, url.removeprefix(place), data)


def api_key() -> str:
    """What the environment holds as MESHAG_API_KEY; may be empty. Raises ConfigError, without its value."""
    key = os.environ.get("MESHAG_API_KEY", "").strip()
    if key and parse_api_key(key) is None:
        raise ConfigError(
            "MESHAG_API_KEY is not an API key",
            path="MESHAG_API_KEY",
            fix="set it to what `meshag key create` printed: mesh_, 13 characters, _, 52 characters",
        )
    return key


def stranger(place: str) -> MeshError:
    """Something answers there, in another language."""
    return MeshError(
        f"what answers at {place} is not MeshAG's transport service: name it with --url or --port-base",
        code="unreachable",
    )


def program() -> str:
    """What to type to run this again: `meshag` where the shell finds it, else `.venv/bin/python -m meshag`."""
    if shutil.which("meshag"):
        return "meshag"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"{shlex.quote(str(python))} -m meshag"
