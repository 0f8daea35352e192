"""What several commands share."""

import argparse
import asyncio
import http.client
import json
import shlex
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from meshag.errors import ConfigError, MeshError
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
    parser.add_argument("--url", help="the transport service (default: http://127.0.0.1:8084)")
    add_port_base(parser)


def url_from(args: argparse.Namespace) -> str:
    """The transport service that the command line means. Raises ConfigError."""
    if not args.url:
        settings = settings_from(args)
        return f"http://{_reachable(settings.host)}:{settings.port('transport')}"
    url = str(args.url).rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"--url: '{url}' is not the address of a service", path="--url", fix="as in http://127.0.0.1:8084"
        )
    return url


def _reachable(host: str) -> str:
    """An address of this machine that answers for what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def ask(method: str, url: str, body: Any = None, *, timeout_s: float = 30) -> Any:
    """One HTTP exchange in JSON. Raises MeshError with the service's own words, or with what to start."""
    data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    where = urlsplit(url)
    place = f"{where.scheme}://{where.netloc}"
    try:
        with _opener(where.hostname).open(request, timeout=timeout_s) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        raise MeshError(_words(error.read(), error.code, place), code="refused") from None
    except (ValueError, http.client.HTTPException):
        raise stranger(place) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise MeshError(
            f"nothing answers at {place} ({reason}). Start the mesh with `{program()} up`, or name another with --url "
            "or --port-base",
            code="unreachable",
        ) from None


def stranger(place: str) -> MeshError:
    """Something answers there, in another language."""
    return MeshError(
        f"what answers at {place} is not MeshAG's transport service: name it with --url or --port-base",
        code="unreachable",
    )


def _opener(host: str | None) -> urllib.request.OpenerDirector:
    """A proxy that the environment names is not for this machine."""
    direct = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
    return urllib.request.build_opener(*direct)


def _words(body: bytes, status: int, place: str) -> str:
    try:
        found = json.loads(body)
        lines = [f"{found['title']} ({status} {found['code']})"]
        for item in found.get("problems", []):
            where = f"{item['path']}: " if item["path"] else ""
            lines.append(f"  {where}{item['message']}\n    fix: {item['fix']}")
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError):
        return f"{place} answered {status}, and not as MeshAG does: is this its transport service?"


def program() -> str:
    """What to type to run this again: `meshag` where the shell finds it, else `.venv/bin/python -m meshag`."""
    if shutil.which("meshag"):
        return "meshag"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"{shlex.quote(str(python))} -m meshag"


class stopping:  # noqa: N801 - reads as a statement
    """`with stopping() as signals`: the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt, further ones nothing.

    `on_signal`, where set, is called instead: an event loop is not to be torn from within.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        """Which signal came first."""
        self.on_signal: Callable[[], object] | None = None
        self._held = False

    def __enter__(self) -> "stopping":
        self._former = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stays
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Signals no longer interrupt: what goes on is the end already."""
        self._held = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came is not None:
            return
        self.came = number
        if number != signal.SIGHUP:  # the terminal is gone then
            print("\nStopping …", file=sys.stderr, flush=True)
        if self._held:
            return
        if self.on_signal is not None:
            self.on_signal()
        else:
            raise KeyboardInterrupt
