"""`meshag session create|list|show|end`: sessions of a running mesh."""

import argparse
import json
import sys
from pathlib import Path
from urllib.parse import quote

from meshag.commands.common import add_action, add_url, ask, number, stranger, url_from
from meshag.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag session`."""
    parser.epilog = "examples:\n  meshag session create my-agent.json\n  meshag session list"
    actions = parser.add_subparsers(dest="action", metavar="create|list|show|end", required=True)
    create = add_action(
        actions,
        "create",
        "make a session; prints where and with what token to join it",
        "examples:\n  meshag session create my-agent.json\n  meshag session create --port-base 9081",
    )
    create.add_argument(
        "file", nargs="?", metavar="FILE", help="a JSON file, or - for standard input (default: everything default)"
    )
    listing = add_action(actions, "list", "the newest sessions", "example:\n  meshag session list --limit 10")
    listing.add_argument("--limit", type=number(1, 1000), default=100, help="how many, 1 to 1000 (default 100)")
    show = add_action(
        actions, "show", "one session and what was said in it", "example:\n  meshag session show SESSION_ID"
    )
    end = add_action(actions, "end", "end a session", "example:\n  meshag session end SESSION_ID")
    for sub in (show, end):
        sub.add_argument("id", metavar="SESSION_ID", help="as `meshag session list` shows it")
    for sub in (create, listing, show, end):
        add_url(sub)


def run(args: argparse.Namespace) -> int:
    """Do it, and print JSON."""
    place = url_from(args)
    url = f"{place}/sessions"
    try:
        if args.action == "create":
            _print(ask("POST", f"{url}/with-config", read_file(args.file) if args.file else {"config": {}}))
        elif args.action == "list":
            for item in ask("GET", f"{url}?limit={args.limit}")["sessions"]:
                print(f"{item['session_id']}  {item['status']:<8} {item['pipeline']:<16} {item['session_name']}")
        elif args.action == "show":
            one = f"{url}/{quote(args.id, safe='')}"
            _print(ask("GET", one) | {"turns": ask("GET", f"{one}/history")["turns"]})
        else:
            ask("DELETE", f"{url}/{quote(args.id, safe='')}")
            print(f"ended {args.id}")
    except (KeyError, TypeError):
        raise stranger(place) from None
    return 0


def read_file(path: str) -> bytes:
    """The bytes of a file, or of standard input for `-`. Raises ConfigError."""
    if path == "-":
        if sys.stdin.isatty():
            print("reading the configuration from the keyboard; end it with Ctrl-D", file=sys.stderr)
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}", path="FILE", fix="name a JSON file") from None


def _print(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
