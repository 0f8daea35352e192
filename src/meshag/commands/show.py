"""`meshag show FILE`: a recorded session as a timeline."""

import argparse
import sys

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag show`."""
    parser.epilog = (
        "Turn by turn: what was said, and under it each event at its milliseconds before or after the moment at which\n"
        "the caller had finished, with the worker and the provider that did it.\n\n"
        "examples:\n  meshag show call.mesh\n  meshag show --json call.mesh"
    )
    parser.add_argument("file", metavar="FILE", help="what `meshag record` wrote")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print it. A file that was cut off is shown as far as it goes, and that is said on stderr."""
    from meshag.recording.file import read
    from meshag.recording.tape import Tape
    from meshag.recording.timeline import timeline
    from meshag.recording.waterfall import lines

    recording = read(args.file)
    told = timeline(Tape(recording))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        for line in lines(told):
            print(line)
    sys.stdout.flush()
    if recording.cut_off:
        print(f"{args.file} was cut off: this is what there is.", file=sys.stderr)
    return 0
