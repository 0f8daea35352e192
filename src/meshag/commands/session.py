"""`meshag session create|list|show|say|transcript|end`: sessions of a running mesh."""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import msgspec

from meshag.commands.common import add_action, add_url, client, number, said_here
from meshag.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag session`."""
    parser.epilog = "examples:\n  meshag session create my-agent.json\n  meshag session list"
    actions = parser.add_subparsers(dest="action", metavar="create|list|show|say|transcript|end", required=True)
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
    say = add_action(
        actions,
        "say",
        "the agent says this to the caller",
        'example:\n  meshag session say SESSION_ID "Your taxi is here."',
    )
    transcript = add_action(
        actions, "transcript", "what was said, with times", "example:\n  meshag session transcript SESSION_ID --vtt"
    )
    transcript.add_argument("--vtt", action="store_true", help="as subtitles (WebVTT)")
    end = add_action(actions, "end", "end a session", "example:\n  meshag session end SESSION_ID")
    for sub in (show, say, transcript, end):
        sub.add_argument("id", metavar="SESSION_ID", help="as `meshag session list` shows it")
    say.add_argument("text", metavar="TEXT", help="what it says, up to 4,000 characters")
    say.add_argument("--wait", action="store_true", help="after the answer on its way, not in place of it")
    for sub in (create, listing, show, say, transcript, end):
        add_url(sub)


def run(args: argparse.Namespace) -> int:
    """Do it, and print JSON."""
    mesh = client(args)
    with said_here():
        if args.action == "create":
            _print(mesh.create(read_file(args.file) if args.file else None))
        elif args.action == "list":
            for item in islice(mesh.list(page=args.limit), args.limit):
                print(f"{item.session_id}  {item.status:<8} {item.pipeline:<16} {item.session_name}")
        elif args.action == "show":
            _print(msgspec.to_builtins(mesh.show(args.id)) | msgspec.to_builtins(mesh.history(args.id)))
        elif args.action == "say":
            mesh.say(args.id, args.text, interrupt=not args.wait)
        elif args.action == "transcript":
            print(mesh.transcript_text(args.id, "vtt" if args.vtt else "text"), end="")
        else:
            mesh.end(args.id)
            print(f"ended {args.id}")
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
    print(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))
