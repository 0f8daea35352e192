"""`meshag config check FILE`: is this configuration one that would run?"""

import argparse
from collections.abc import Iterable

from meshag.commands.common import add_action
from meshag.commands.session import read_file
from meshag.connectors.addresses import Hosts
from meshag.connectors.registry import Registry
from meshag.connectors.states import session_problems
from meshag.sessions.config import parse_request, stages_of
from meshag.sessions.problems import ConfigProblems, Problem
from meshag.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag config`."""
    parser.epilog = "example:\n  meshag config check my-agent.json"
    actions = parser.add_subparsers(dest="action", metavar="check", required=True)
    check = add_action(
        actions,
        "check",
        "say whether a session with this configuration would be made here, and if not, why",
        "examples:\n  meshag config check my-agent.json\n  echo '{\"config\": {}}' | meshag config check -\n\n"
        "exit status: 0 good, 1 it would be refused, 2 there is no such file",
    )
    check.add_argument(
        "file", metavar="FILE", help="a JSON file as for POST /sessions/with-config, or - for standard input"
    )


def run(args: argparse.Namespace) -> int:
    """Print what is wrong with it. Exit status 1 when it would be refused."""
    body = read_file(args.file)
    name = "standard input" if args.file == "-" else args.file
    try:
        request = parse_request(body)
    except ConfigProblems as error:
        return _refused(name, error.problems)
    settings = Settings()
    problems = session_problems(Registry(settings.connectors), Hosts(settings.tool_hosts), request)
    if any(not problem.warning for problem in problems):
        return _refused(name, problems)
    _print(problems)
    flow = request.config.pipeline
    print(f"{name}: good. Pipeline {flow.name} through {', '.join(stages_of(request.config))}.")
    return 0


def _refused(name: str, problems: Iterable[Problem]) -> int:
    _print(problems)
    print(f"{name}: would be refused.")
    return 1


def _print(problems: Iterable[Problem]) -> None:
    for problem in problems:
        kind = "warning" if problem.warning else "error"
        where = f"{problem.path}: " if problem.path else ""
        print(f"{kind}: {where}{problem.message}\n  fix: {problem.fix}")
