"""`python -m faults.chaos`: see the package. Run it from the repository with PYTHONPATH=.:tests, as make does."""

import argparse
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from faults.chaos import checker, history, mutants, table
from faults.chaos.run import Plan, run

MUTANT_SECONDS = 12.0


def main() -> int:
    """Exit status 0: nothing was broken, or every mutant was caught."""
    parser = argparse.ArgumentParser(prog="faults.chaos", description="Break a mesh and look what its callers hear.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="break things for a while, print the table")
    running.add_argument("--seconds", type=float, default=60)
    running.add_argument("--seed", type=int, default=None)
    running.add_argument("--callers", type=int, default=6)
    running.add_argument("--every", type=float, default=0.8, help="seconds from one fault to the next")
    running.add_argument("--table", type=Path, help="a page whose table is replaced")
    running.add_argument("--keep", type=Path, help="where the run's files are kept, whatever came of it")
    hunting = commands.add_parser("mutants", help="break one rule after the other: each has to be noticed")
    hunting.add_argument("names", nargs="*", choices=[*mutants.MUTANTS, []])
    hunting.add_argument("--seed", type=int, default=1)
    hunting.add_argument("--seconds", type=float, default=MUTANT_SECONDS)
    checking = commands.add_parser("check", help="check a history, and print its table")
    checking.add_argument("history", type=Path)
    asked = parser.parse_args()
    if asked.command == "check":
        return report(asked.history, f"`{asked.history.name}`")[0]
    if asked.command == "mutants":
        return hunt(asked.names or list(mutants.MUTANTS), asked.seed, asked.seconds)
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    directory = asked.keep or Path(tempfile.mkdtemp(prefix="meshag-chaos-"))
    plan = Plan(asked.seconds, seed, callers=asked.callers, every_s=asked.every)
    print(f"seed {seed}, files in {directory}", flush=True)
    status, text = report(run(plan, directory), f"`make chaos SECONDS={asked.seconds:.0f} SEED={seed}`")
    if asked.table:
        table.put(asked.table, text)
    if status or asked.keep:
        print(f"history and recordings: {directory}")
    else:
        shutil.rmtree(directory)
    return status


def report(path: Path, command: str) -> tuple[int, str]:
    """Check a history, print what was found and the table. Returns the exit status and the table."""
    lines = history.read(path)
    violations = checker.check(lines)
    found = table.rows(lines, violations)
    questions = sum(line["what"] == "asked" for line in lines)
    sessions = sum(line["what"] == "session" for line in lines)
    faults = [line for line in lines if line["what"] == "fault"]
    kills = sum("killed" in fault["kind"] for fault in faults)
    headline = (
        f"{command}: {len(faults)} faults, {kills} of them kills, {sessions} sessions, {questions} questions; "
        f"{len(violations)} violations."
    )
    text = table.written(found, headline)
    print(text)
    for violation in violations[:40]:
        print(f"{violation.rule:12} {violation.session:26} {violation.what}")
    return (1 if violations else 0), text


def hunt(names: list[str], seed: int, seconds: float) -> int:
    """Run each mutant among the faults that show it. Returns 1 when one was not caught."""
    missed = []
    for name in names:
        chosen = mutants.MUTANTS[name]
        directory = Path(tempfile.mkdtemp(prefix=f"meshag-chaos-{name}-"))
        plan = Plan(seconds, seed, chosen.kinds, callers=5, every_s=0.4, turns=5, mutant=name, stages=chosen.stages)
        violations = checker.check(history.read(run(plan, directory)))
        rules = Counter(violation.rule for violation in violations)
        caught = ", ".join(f"{rule} {times}" for rule, times in rules.most_common()) or "NOT CAUGHT"
        print(f"{name:30} {caught:40} {chosen.rule}", flush=True)
        missed += [] if violations else [name]
        shutil.rmtree(directory)
    print(f"{len(names) - len(missed)} of {len(names)} mutants caught", *missed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
