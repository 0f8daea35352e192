"""`meshag models list|pull`: the local models."""

import argparse

from meshag.models import command
from meshag.models.command import run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag models`. Its actions show its examples where they have none of their own."""
    command.add_arguments(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                sub.epilog = sub.epilog or parser.epilog
