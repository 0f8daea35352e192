"""Which provider serves which stage, and whether it can. What is installed is passed in: sessions know no connector."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from meshag.sessions.pipeline import Part
from meshag.sessions.problems import FoundProblems, Problem, dotted, nearest, problems_of
from meshag.subjects import Stage

ProviderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""1 to 64 letters, digits, `-` and `_`."""


D = TypeVar("D")


class StageDeadlines(Part):
    """How long a stage's providers may take. What is left out is the provider's own default."""

    connect_ms: int | None = Field(default=None, ge=50, le=60_000)
    """To be ready, ms. 50 to 60,000. Default: the provider's own, mostly 1,500."""

    first_ms: int | None = Field(default=None, ge=50, le=60_000)
    """To the first item, ms; for stt: from the end of the turn. 50 to 60,000. Default: the provider's own; the last one
    left of stt and llm has three times as long. Said here, it holds for all."""

    between_ms: int | None = Field(default=None, ge=50, le=60_000)
    """From one item to the next, ms. 50 to 60,000. Default: the provider's own, mostly 1,000."""

    total_ms: int | None = Field(default=None, ge=100, le=600_000)
    """To the end of one answer, ms. 100 to 600,000. Default: the provider's own, mostly 60,000."""

    notice_ms: int | None = Field(default=None, ge=100, le=60_000)
    """When nothing has been said for this long, the caller is asked for patience, ms. 100 to 60,000. Default 1,800."""

    def over(self, defaults: D) -> D:
        """`defaults`, a dataclass with fields of these names, with what is said here in their place."""
        said = {name: value for name, value in self.model_dump().items() if value is not None}
        return dataclasses.replace(defaults, **said) if said else defaults  # type: ignore[type-var]


class StageConnectors(Part):
    """Who serves a stage."""

    primary: ProviderName
    """The provider that is asked first."""

    fallback: list[ProviderName] = Field(default_factory=list, max_length=8)
    """Who is asked next when it fails, in this order. At most 8. Default: nobody."""

    config: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Each provider's own options, by its name. Default: none."""

    deadlines: StageDeadlines = Field(default_factory=StageDeadlines)
    """How long a provider may take before the next one is asked. Default: each provider's own."""

    hedge_ms: int | None = Field(default=None, ge=10, le=60_000)
    """When the first provider is late by so much, ms, the second starts too; who speaks first is heard. 10 to 60,000.
    Default: one after the other."""

    @model_validator(mode="after")
    def _each_once(self) -> "StageConnectors":
        problems, listed = [], [self.primary, *self.fallback]
        for i, name in enumerate(self.fallback):
            if name in listed[: i + 1]:
                said = f"'{name}' is listed twice"
                problems.append(Problem(f"fallback.{i}", said, "remove one of them", "provider_duplicate"))
        for name in self.config:
            if name not in listed:
                guess = nearest(name, listed)
                fix = f"did you mean '{guess}'?" if guess else "add it to fallback, or remove its options"
                said = "options for a provider that is neither primary nor fallback"
                problems.append(Problem(dotted("config", name), said, fix, "provider_unlisted"))
        if problems:
            raise FoundProblems(problems)
        return self


def _local() -> StageConnectors:
    return StageConnectors(primary="local")


class Connectors(Part):
    """Who serves each stage. Stages that the flow leaves out are not looked at."""

    stt: StageConnectors = Field(default_factory=_local)
    """Speech to text. Default: local."""

    llm: StageConnectors = Field(default_factory=_local)
    """Language model. Default: local."""

    tts: StageConnectors = Field(default_factory=_local)
    """Text to speech. Default: local."""

    transport: StageConnectors = Field(default_factory=lambda: StageConnectors(primary="websocket"))
    """How the caller is reached. Default: websocket."""

    def of(self, stage: Stage) -> StageConnectors:
        """Who serves `stage`."""
        found: StageConnectors = getattr(self, stage)
        return found

    def listed(self, stage: Stage) -> list[str]:
        """The providers of `stage` in the order in which they are asked."""
        chosen = self.of(stage)
        return [chosen.primary, *chosen.fallback]


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What is known of a provider here."""

    known: bool
    """Whether a provider of that name is installed."""

    available: bool = False
    """Whether it can work now."""

    detail: str = ""
    """What is missing when it cannot, and the command that mends it."""

    options: type[BaseModel] | None = None
    """The model that checks its options. None: they are not checked."""


Lookup = Callable[[Stage, str], ProviderState]
"""What is known of a provider of a stage."""


def provider_problems(
    connectors: Connectors, stages: Iterable[Stage], lookup: Lookup, names: Callable[[Stage], Sequence[str]]
) -> list[Problem]:
    """What is wrong with the providers of `stages`; `warning` where another provider of the stage can do the work."""
    problems: list[Problem] = []
    for stage in stages:
        listed = connectors.listed(stage)
        states = {name: lookup(stage, name) for name in listed}
        working = sum(state.available for state in states.values())
        usable = [name for name in names(stage) if lookup(stage, name).available] if len(listed) > working else []
        able = ", ".join(usable) or "none"
        if not working:
            fix = f"available for {stage}: {able}" + (f"; set primary to '{usable[0]}'" if usable else "")
            said = f"names only absent providers: {', '.join(listed)}"
            problems.append(Problem(f"config.connectors.{stage}", said, fix, "providers_absent"))
        for i, name in enumerate(listed):
            if not states[name].available:
                path = f"config.connectors.{stage}.{f'fallback.{i - 1}' if i else 'primary'}"
                absent = _absent(path, stage, name, states[name], able)
                problems.append(replace(absent, warning=working > 0))
        for name, options in connectors.of(stage).config.items():
            model = states[name].options
            if model is not None:
                problems += _option_problems(model, options, f"config.connectors.{stage}.{dotted('config', name)}")
    return problems


def _absent(path: str, stage: Stage, name: str, state: ProviderState, able: str) -> Problem:
    if state.known:
        said, fix, code = f"'{name}' cannot work here: {state.detail}", state.detail, "provider_unavailable"
    else:
        said, fix, code = f"no {stage} provider is called '{name}'", f"available: {able}", "provider_unknown"
    return Problem(path, said, fix, code)


def _option_problems(model: type[BaseModel], options: dict[str, Any], path: str) -> list[Problem]:
    try:
        model.model_validate(options)
    except ValidationError as error:
        return problems_of(error, model, path)
    return []
