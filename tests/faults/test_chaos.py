"""A short run of chaos with a fixed seed; `make chaos` has longer ones. The history of a failed run is kept."""

import shutil
import tempfile
from pathlib import Path

import pytest

from faults.chaos import checker, history, mutants, nemesis
from faults.chaos.run import Plan, run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(170)]

SEED = 20_261_125


def broken(plan: Plan) -> tuple[list[history.Line], list[checker.Violation], Path]:
    """Run it: the history, what the checker finds in it, and where it is."""
    directory = Path(tempfile.mkdtemp(prefix="meshag-chaos-"))
    lines = history.read(run(plan, directory))
    return lines, checker.check(lines), directory


def test_callers_notice_nothing_of_twenty_seconds_of_faults() -> None:
    lines, violations, directory = broken(Plan(20, SEED, every_s=0.3, callers=5))
    assert not violations, f"{violations[:10]}; history and recordings: {directory}"
    shutil.rmtree(directory)
    faults = [line for line in lines if line["what"] == "fault"]
    assert sum(len(fault["sessions"]) > 0 for fault in faults) >= 3
    assert {fault["kind"] for fault in faults} <= set(nemesis.KINDS)
    assert sum(line["what"] == "asked" for line in lines) >= 15
    assert sum(line["what"] == "stored" for line in lines) >= 5
    assert any(line["what"] == "frame" for line in lines)


def test_the_checker_notices_when_a_rule_of_the_product_is_broken() -> None:
    """One of those that `make chaos-mutants` breaks."""
    name = "remembers_what_was_generated"
    _, violations, directory = broken(Plan(8, SEED, mutants.MUTANTS[name].kinds, mutant=name, turns=6, workers=1))
    shutil.rmtree(directory)
    assert {violation.rule for violation in violations} == {"history"}


def test_there_are_enough_mutants() -> None:
    assert len(mutants.MUTANTS) >= 12
    assert all(set(mutant.kinds) <= set(nemesis.KINDS) for mutant in mutants.MUTANTS.values())
