"""What is known of a provider here, as the check of a session's configuration wants it."""

from meshag.connectors.addresses import Hosts
from meshag.connectors.contracts import Connector, LlmConnector
from meshag.connectors.failover import candidates
from meshag.connectors.registry import Registry
from meshag.errors import ConfigError
from meshag.sessions.config import SessionRequest, check_providers, stages_of
from meshag.sessions.problems import Problem
from meshag.sessions.providers import ProviderState
from meshag.subjects import Stage


def provider_state(registry: Registry, stage: Stage, name: str) -> ProviderState:
    """Whether a provider is installed and can work in this process."""
    if name not in registry.names(stage):
        return ProviderState(known=False)
    try:
        connector = registry.get(stage, name)
    except ConfigError as error:
        return ProviderState(known=True, detail=str(error))
    found = connector.availability()
    return ProviderState(True, found.available, found.detail, connector.options)


def provider_problems(registry: Registry, request: SessionRequest) -> list[Problem]:
    """What is wrong with the providers that a session asks for; those with `warning` do not stand in its way."""
    problems = check_providers(request, lambda stage, name: provider_state(registry, stage, name), registry.names)
    if any(not problem.warning for problem in problems):
        return problems
    for stage in stages_of(request.config):
        for candidate in candidates(registry, stage, request.config.connectors.of(stage), Connector):
            try:
                candidate.connector.accept(candidate.options)
            except ConfigError as error:
                problems.append(Problem(error.path, str(error), error.fix, error.code))
    return problems


def session_problems(registry: Registry, hosts: Hosts, request: SessionRequest) -> list[Problem]:
    """What is wrong here with all that a session asks for; those with `warning` do not stand in its way.

    `hosts`: where tools may be although their addresses are not public.
    """
    problems = provider_problems(registry, request)
    config = request.config
    if not config.tools or not config.tools_per_turn or "llm" not in stages_of(config):
        return problems  # no function is ever called
    return [*problems, *hosts.concerns(config.tools), *_calling_problems(registry, request)]


def _calling_problems(registry: Registry, request: SessionRequest) -> list[Problem]:
    """Which of the session's models cannot call its functions. The first that can work has to."""
    chosen = request.config.connectors.llm
    asked = candidates(registry, "llm", chosen, LlmConnector)  # type: ignore[type-abstract]
    unable = [one.name for one in asked if not one.connector.tools]
    code = "tools_not_called"
    if asked and asked[0].name in unable:
        able = [one.name for one in asked if one.connector.tools]
        others = ", ".join(able or _that_call(registry)) or "none here"
        fix = f"put one first that can call functions ({others}), or remove 'tools'"
        return [Problem("config.connectors.llm", f"'{unable[0]}' answers first and cannot call functions", fix, code)]
    listed = request.config.connectors.listed("llm")
    return [
        Problem(
            f"config.connectors.llm.fallback.{listed.index(name) - 1}",
            f"'{name}' cannot call functions: it answers without them",
            "nothing, if that will do",
            code,
            warning=True,
        )
        for name in unable
    ]


def _that_call(registry: Registry) -> list[str]:
    """The names of the models that can work here and call functions."""
    found: list[str] = []
    for name in registry.names("llm"):
        try:
            connector = registry.get("llm", name)
        except ConfigError:
            continue
        if isinstance(connector, LlmConnector) and connector.tools and connector.availability().available:
            found.append(name)
    return found
