"""The `meshag` command. Each subcommand is a file in `commands/`, imported when it is asked for.

Exit status: 0 done; 1 it could not be done, and why was said; 2 it was asked for wrongly; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from meshag import __version__
from meshag.commands.signals import end_at_once, handled, unwind, unwinds

COMMANDS = {
    "run": "start the mesh and play a demonstration: what `make run` does",
    "up": "start the mesh on this machine: both servers and every service",
    "serve": "run one service: stt, llm, tts or transport",
    "demo": "talk to a running mesh with recorded speech",
    "doctor": "what is installed, reachable and configured, and what to do about the rest",
    "session": "create, list, show, end sessions of a running mesh",
    "record": "save a session to a file",
    "show": "a recorded session as a timeline",
    "replay": "does the present code do with a recorded session what it did then?",
    "provider": "which providers are in use; switch one off for all calls, and on again",
    "drain": "have workers hand their sessions over and end: a rolling restart",
    "key": "create, list and revoke the API keys of a mesh",
    "config": "check a session configuration file",
    "models": "list and fetch the local models",
}
"""Subcommand to what it does. Its module is `meshag.commands.<name>` with `add_arguments` and `run`."""

EXAMPLES = """\
examples:
  meshag run                               start everything and hear it answer
  meshag up --port-base 9081               start everything, on other ports, and leave it running
  meshag doctor                            when something does not work
  meshag COMMAND --help                    more about one of them
"""

INTERRUPTED = 130
BROKEN_PIPE = 141


class Parser(argparse.ArgumentParser):
    """Keeps the lines of an example apart, and says what is wrong in one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n  fix: see {self.prog} --help\n")


def parser(command: str | None = None) -> Parser:
    """The parser; with `command`, that subcommand's arguments in full."""
    made = Parser(prog="meshag", description="A distributed orchestrator for AI agents that talk.", epilog=EXAMPLES)
    made.add_argument("--version", action="version", version=f"meshag {__version__}")
    subparsers = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, what in COMMANDS.items():
        sub = subparsers.add_parser(name, help=what, description=what)
        if name == command:
            import_module(f"meshag.commands.{name}").add_arguments(sub)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to end
    with handled(end_at_once):
        try:
            status = _run(words)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print(file=sys.stderr)
            status = INTERRUPTED
        except BrokenPipeError:  # `meshag models list | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = BROKEN_PIPE
    sys.exit(status)


def _run(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), None)
    args = parser(command if command in COMMANDS else None).parse_args(words)
    from pydantic import ValidationError

    from meshag.errors import ConfigError, MeshError

    try:
        run: Callable[[argparse.Namespace], int] = import_module(f"meshag.commands.{args.command}").run
        with handled(unwind):
            return run(args)
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]).upper()
            name = where if where in ("NATS_URL", "VALKEY_URL") else f"MESHAG_{where}"
            print(f"meshag: the setting {name}: {item['msg']}\n  fix: set it so, or unset it", file=sys.stderr)
        return 2
    except MeshError as error:
        fix = f"\n  fix: {error.fix}" if isinstance(error, ConfigError) and error.fix else ""
        print(f"meshag: {error}{fix}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        if unwinds(error):  # thrown into an import, which wraps it
            return INTERRUPTED
        raise
