"""The table of docs/faults.md, from a history and what the checker found in it."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from faults.chaos.checker import Line, Session, Violation, sessions_of

RECOVERED_MS = 30_000
"""A takeover that takes longer than this is none of this fault."""

LOST, DOUBLED = ("lost", "order", "history", "journal", "crash"), ("doubled", "leak", "epoch")
BEGIN, END = "<!-- table -->", "<!-- /table -->"


@dataclass
class Row:
    """One kind of fault."""

    trials: int = 0
    sessions: int = 0
    """That were hit."""
    lost: int = 0
    doubled: int = 0
    takeovers_ms: list[float] = field(default_factory=list)
    """From the fault to the next owner at work, each session."""
    gaps_ms: list[float] = field(default_factory=list)
    """The longest hole in each answer that was being heard at that moment."""


def rows(lines: list[Line], violations: Iterable[Violation]) -> dict[str, Row]:
    """By kind of fault; what cannot be laid to any stands under `calm`."""
    found: dict[str, Row] = defaultdict(Row)
    faults = sorted((line for line in lines if line["what"] == "fault"), key=lambda line: float(line["at_ms"]))
    sessions = sessions_of(lines)
    for fault in faults:
        row = found[name_of(fault)]
        row.trials += 1
        for session in (sessions[one] for one in fault["sessions"] if one in sessions):
            row.sessions += 1
            if fault["stage"] and (took := _takeover_ms(session, fault)) is not None:
                row.takeovers_ms.append(took)
            if (gap := _gap_ms(session, fault["at_ms"])) is not None:
                row.gaps_ms.append(gap)
    for violation in violations:
        before = [f for f in faults if violation.session in f["sessions"] and f["at_ms"] < violation.at_ms + 3_000]
        row = found[name_of(before[-1]) if before else "calm"]
        row.lost += violation.rule in LOST
        row.doubled += violation.rule in DOUBLED
    return dict(found)


def name_of(fault: Line) -> str:
    """What a fault is called."""
    return f"{fault['stage']} {fault['kind']}".strip()


def _takeover_ms(session: Session, fault: Line) -> float | None:
    for event in session.events:
        if event["type"] == "owner_changed" and event["stage"] == fault["stage"]:
            took = event["t_ms"] - fault["at_ms"]
            if -1 <= took < RECOVERED_MS:
                return max(0.0, float(took))
    return None


def _gap_ms(session: Session, at_ms: float) -> float | None:
    """The longest wait between two pieces of the answer that was being heard; None: nothing was."""
    for number, group in itertools.groupby(session.heard, lambda line: line["number"]):
        times = [float(line["at_ms"]) for line in group]
        if number > 0 and times[0] <= at_ms <= times[-1]:
            return max((b - a for a, b in itertools.pairwise(times) if b >= at_ms), default=0.0)
    return None


def _quantiles(values: list[float]) -> str:
    if not values:
        return "–"
    ordered = sorted(values)
    return " / ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.0f}" for share in (0.5, 0.95, 0.99))


def written(found: dict[str, Row], headline: str) -> str:
    """Markdown."""
    head = [
        headline,
        "",
        "| fault | trials | sessions hit | lost | doubled | next owner at work, ms p50 / p95 / p99 "
        "| longest hole in the answer, ms p50 / p95 / p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {name} | {row.trials} | {row.sessions} | {row.lost} | {row.doubled} | {_quantiles(row.takeovers_ms)} "
        f"| {_quantiles(row.gaps_ms)} |"
        for name, row in sorted(found.items())
    ]
    return "\n".join([*head, *body])


def put(path: Path, text: str) -> None:
    """Replace the table in a page."""
    page = path.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
