"""`meshag provider list|off|on`: which providers a running mesh asks."""

import argparse
import json

import msgspec

from meshag import clock
from meshag.api.schemas import Provider
from meshag.client import Client
from meshag.commands.common import add_action, add_url, client, said_here
from meshag.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag provider`."""
    parser.epilog = "examples:\n  meshag provider list\n  meshag provider off openai\n  meshag provider on openai"
    actions = parser.add_subparsers(dest="action", metavar="list|off|on", required=True)
    listing = add_action(
        actions, "list", "every provider, and whether it is in use", "example:\n  meshag provider list --json"
    )
    listing.add_argument("--json", action="store_true", help="as the service says it")
    off = add_action(
        actions,
        "off",
        "nobody asks it any more, live calls included, until it is switched on again",
        "examples:\n  meshag provider off openai\n  meshag provider off openai --stage llm",
    )
    on = add_action(actions, "on", "it may be asked again", "example:\n  meshag provider on openai")
    for sub in (off, on):
        sub.add_argument("name", metavar="NAME", help="as `meshag provider list` shows it")
        sub.add_argument("--stage", choices=("stt", "llm", "tts"), help="only there (default: wherever it serves)")
    for sub in (listing, off, on):
        add_url(sub)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    mesh = client(args)
    with said_here():
        found = mesh.providers().providers
        if args.action == "list":
            _show(found, as_json=args.json)
        else:
            _switch(mesh, found, args)
    return 0


def _show(found: dict[str, dict[str, Provider]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
        return
    for stage, providers in found.items():
        for name, told in providers.items():
            state = told.state if told.available else "absent"
            print(f"{stage:<10} {name:<12} {_SHOWN.get(state, state):<8} {_why(told)}")


_SHOWN = {"closed": "in use", "open": "failed"}


def _why(told: Provider) -> str:
    if told.state == "closed" or not told.available:
        return told.detail
    seconds = max(0, int(clock.wall_s() - told.since_ms / 1000))
    return f"{told.code}, {seconds} s ago"


def _switch(mesh: Client, found: dict[str, dict[str, Provider]], args: argparse.Namespace) -> None:
    stages = [
        stage
        for stage, providers in found.items()
        if args.name in providers and stage != "transport" and args.stage in (None, stage)
    ]
    if not stages:
        known = sorted({name for stage, providers in found.items() if stage != "transport" for name in providers})
        raise ConfigError(
            f"no provider '{args.name}'" + (f" of {args.stage}" if args.stage else ""),
            path="NAME",
            fix=f"one of {', '.join(known)}",
        )
    for stage in stages:
        mesh.switch(stage, args.name, args.action)
        print(f"{stage} {args.name} is {args.action}")
