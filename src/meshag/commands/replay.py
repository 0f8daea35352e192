"""`meshag replay FILE`: does the present code do with a recorded session what it did then?"""

import argparse
import json

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag replay`."""
    parser.epilog = (
        "Each stage hears what it heard then, from providers that say what they said then, in time of its own: it is\n"
        "done in seconds, needs no server and no key, and gives the same every time.\n\n"
        "examples:\n  meshag replay call.mesh\n  meshag replay --json call.mesh\n\n"
        "exit status: 0 it does the same, 1 something differs, 2 it cannot be replayed"
    )
    parser.add_argument("file", metavar="FILE", help="what `meshag record --follow` wrote")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")


def run(args: argparse.Namespace) -> int:
    """Replay and say what differs. Exit status 1 when something does."""
    from meshag.recording.file import read
    from meshag.recording.replay import replay

    found = replay(read(args.file))
    if args.json:
        print(json.dumps({"same": found.same, **msgspec.to_builtins(found)}, indent=2, ensure_ascii=False))
        return 0 if found.same else 1
    turn = 0
    for one in found.differences:
        if one.turn != turn:
            turn = one.turn
            print(f"turn {turn}")
        print(f"  {one.stage:<9} {one.what}")
        print(f"    recorded  {_shown(one.recorded)}")
        print(f"    now       {_shown(one.replayed)}")
    for note in found.notes:
        print(f"note: {note}")
    number = len(found.differences)
    said = "the same" if found.same else f"{number} difference{'s' if number > 1 else ''}"
    print(f"{args.file}: {said}. {found.turns} turns through {', '.join(found.stages)}.")
    return 0 if found.same else 1


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
