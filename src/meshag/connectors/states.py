"""What is known of a provider here, as the check of a session's configuration wants it."""

from meshag.connectors.contracts import Connector
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
