"""`meshag models`: which models there are, and bringing them."""

import argparse
import sys
from pathlib import Path

from meshag.errors import ModelError
from meshag.models import catalogue, store
from meshag.models.catalogue import CATALOGUE
from meshag.models.progress import Meter, megabytes
from meshag.models.pull import pull, pull_default
from meshag.settings import Settings

EXAMPLES = """\
examples:
  meshag models list                     what there is, and what of it is here
  meshag models list --verify            the same, after hashing every file
  meshag models pull                     what a first conversation needs
  meshag models pull smollm2-135m-instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the command's arguments into its parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|pull")
    listing = actions.add_parser("list", help="show the models, their licences and where they come from")
    listing.add_argument("--verify", action="store_true", help="hash the files instead of only measuring them")
    pulling = actions.add_parser("pull", help="fetch models into the cache")
    pulling.add_argument("names", nargs="*", metavar="NAME", help="default: what a first conversation needs")


def run(args: argparse.Namespace) -> int:
    """Do it. 0: done; 1: a model could not be had, or is damaged; the reason was printed."""
    cache_dir = Settings().cache_dir
    try:
        return _list(cache_dir, verify=args.verify) if args.action == "list" else _pull(cache_dir, args.names)
    except ModelError as error:
        print(f"meshag: {error}", file=sys.stderr)
        return 1


def _list(cache_dir: Path, *, verify: bool) -> int:
    damaged = 0
    for model in CATALOGUE:
        state = store.verify(model, cache_dir) if verify else store.state(model, cache_dir)
        size = megabytes(model.size_bytes) if model.files else "in its package"
        print(f"{model.name:28} {model.purpose:4} {state:8} {size:>14}  {model.licence}")
        print(f"    {model.title}. {model.provenance}")
        if state == "damaged":
            damaged += 1
            print(f"    It is damaged: run `{store.remedy(model)}`")
    print(f"\nFiles stand in {cache_dir / 'models'}")
    return 1 if damaged else 0


def _pull(cache_dir: Path, names: list[str]) -> int:
    meter = Meter(sys.stderr)
    models = [catalogue.find(name) for name in names]
    for model in models:
        pull(model, cache_dir, meter)
    if not names:
        models = pull_default(cache_dir, meter)
    print(f"ready: {', '.join(model.name for model in models)}")
    return 0
