"""The flow: who feeds whom, and whether everything that is said is heard."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meshag.sessions.problems import FoundProblems, Problem
from meshag.subjects import STAGES, Stage

Stream = Literal["audio", "text"]
"""What flows along an edge."""

TAKES: dict[Stage, tuple[Stream, ...]] = {
    "transport": ("audio", "text"),
    "stt": ("audio",),
    "llm": ("text",),
    "tts": ("text",),
}
"""What each stage can hear."""

GIVES: dict[Stage, tuple[Stream, ...]] = {
    "transport": ("audio", "text"),
    "stt": ("text",),
    "llm": ("text",),
    "tts": ("audio",),
}
"""What each stage can say."""


class Part(BaseModel):
    """What all parts of a configuration have in common: unknown fields and wrong types are refused, nothing changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_by_name=True
    )


class Edge(Part):
    """One connection: what a stage says, another hears."""

    from_: Stage = Field(alias="from")
    """The stage that speaks: transport, stt, llm or tts."""

    to: Stage
    """The stage that hears it: transport, stt, llm or tts."""

    stream: Stream
    """What flows: audio or text."""


VOICE_CHAT = (
    Edge(from_="transport", to="stt", stream="audio"),
    Edge(from_="stt", to="llm", stream="text"),
    Edge(from_="llm", to="tts", stream="text"),
    Edge(from_="tts", to="transport", stream="audio"),
)
"""The default: the caller speaks and hears a voice answer."""


class Pipeline(Part):
    """The road that a turn takes."""

    name: str = Field(default="voice_chat", min_length=1, max_length=64)
    """For people: shown in lists and metrics. 1 to 64 characters. Default voice_chat."""

    flow: list[Edge] = Field(default_factory=lambda: list(VOICE_CHAT), max_length=24)
    """The connections, at most 24. Default: transport → stt → llm → tts → transport."""

    @model_validator(mode="after")
    def _flows(self) -> "Pipeline":
        if problems := flow_problems(self.flow):
            raise FoundProblems(problems)
        return self


def flow_problems(flow: Sequence[Edge]) -> list[Problem]:
    """Everything that is wrong with a flow. Paths are relative to the pipeline: `flow.1.to`."""
    if not flow:
        return [
            Problem("flow", "the flow is empty", "leave it out for a voice chat, or connect transport", "flow_empty")
        ]
    return [*_edge_problems(flow), *_stage_problems(flow), *_cycle_problems(flow)]


def _edge_problems(flow: Sequence[Edge]) -> list[Problem]:
    problems: list[Problem] = []
    seen: Counter[Edge] = Counter()
    for i, edge in enumerate(flow):
        at, seen[edge] = f"flow.{i}", seen[edge] + 1
        if edge.from_ == edge.to:
            problems.append(Problem(at, f"{edge.to} feeds itself", "remove this connection", "flow_self_edge"))
            continue
        if seen[edge] > 1:
            said = f"{edge.from_} → {edge.to} ({edge.stream}) stands here twice"
            problems.append(Problem(at, said, "remove one of them", "flow_duplicate_edge"))
        if edge.stream not in GIVES[edge.from_]:
            said = f"{edge.from_} gives {GIVES[edge.from_][0]}, not {edge.stream}"
            problems.append(Problem(f"{at}.stream", said, f"write '{GIVES[edge.from_][0]}'", "flow_stream"))
        if edge.stream not in TAKES[edge.to]:
            said = f"{edge.to} takes {TAKES[edge.to][0]}, not {edge.stream}"
            fix = f"connect {edge.to} to a stage that gives {TAKES[edge.to][0]}"
            problems.append(Problem(f"{at}.stream", said, fix, "flow_stream"))
        elif edge.to == "stt" and edge.from_ != "transport":
            fix = "feed stt from transport, or remove this connection"
            problems.append(Problem(f"{at}.from", "stt hears only the caller", fix, "flow_stream"))
    return problems


def _stage_problems(flow: Sequence[Edge]) -> list[Problem]:
    speaks = {edge.from_: i for i, edge in reversed(list(enumerate(flow))) if edge.from_ != edge.to}
    hears = {edge.to: i for i, edge in reversed(list(enumerate(flow))) if edge.from_ != edge.to}
    problems: list[Problem] = []
    for stage in STAGES:
        if stage in speaks and stage not in hears and stage != "transport":
            fix = f"add {{'from': …, 'to': '{stage}', 'stream': '{TAKES[stage][0]}'}}"
            problems.append(Problem(f"flow.{speaks[stage]}.from", f"nobody feeds {stage}", fix, "flow_unfed"))
        if stage in hears and stage not in speaks and stage != "transport":
            fix = f"add {{'from': '{stage}', 'to': 'transport', 'stream': '{GIVES[stage][0]}'}}"
            said = f"the flow ends at {stage}: nobody hears what it says"
            problems.append(Problem(f"flow.{hears[stage]}.to", said, fix, "flow_unheard"))
    if "transport" not in hears and not any(problem.code == "flow_unheard" for problem in problems):
        fix = "connect the last stage to transport"
        problems.append(
            Problem("flow", "the flow never reaches its end: nothing comes to transport", fix, "flow_no_end")
        )
    if "transport" not in speaks and not any(problem.code == "flow_unfed" for problem in problems):
        fix = "connect transport to the first stage"
        problems.append(
            Problem("flow", "the flow has no beginning: nothing comes from transport", fix, "flow_no_start")
        )
    return problems


def _cycle_problems(flow: Sequence[Edge]) -> list[Problem]:
    """The first cycle that does not go through transport, at the connection that closes it."""
    inner = [(i, e) for i, e in enumerate(flow) if e.from_ != e.to and "transport" not in (e.from_, e.to)]
    road: dict[Stage, list[Stage]] = {}
    for i, edge in inner:
        if path := _path(road, edge.to, edge.from_):
            said = f"{' → '.join([edge.from_, *path])} is a circle that does not go through transport"
            return [Problem(f"flow.{i}", said, "remove this connection", "flow_cycle")]
        road.setdefault(edge.from_, []).append(edge.to)
    return []


def _path(road: dict[Stage, list[Stage]], start: Stage, end: Stage) -> list[Stage]:
    todo: list[list[Stage]] = [[start]]
    while todo:
        path = todo.pop()
        if path[-1] == end:
            return path
        todo.extend([*path, stage] for stage in road.get(path[-1], []) if stage not in path)
    return []
