"""Around every provider call: deadlines that a slow drip cannot stretch, and who is asked next."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from meshag import clock
from meshag.connectors.contracts import Connector, Deadlines, Options
from meshag.connectors.registry import Registry
from meshag.errors import ConfigError, ConnectorError, MeshError, ProviderTimeout
from meshag.subjects import Stage

C = TypeVar("C", bound=Connector)
T = TypeVar("T")

APOLOGY = "I am sorry, I cannot answer right now. Please try again in a moment."
"""Said when every provider of a stage has failed."""

APOLOGY_UNHEARD = "I am sorry, I could not understand you. Please say that again."
"""Said when every speech recogniser has failed."""


@dataclass(frozen=True)
class Candidate(Generic[C]):
    """A provider to try, with the session's options for it."""

    name: str
    connector: C
    options: Options


def candidates(
    registry: Registry, stage: Stage, names: list[str], options: dict[str, dict[str, Any]], kind: type[C]
) -> list[Candidate[C]]:
    """The available ones of `names`, in their order."""
    found = []
    for name in names:
        try:
            connector = registry.get(stage, name)
        except ConfigError:
            continue  # unknown here; reported when the session was created
        if isinstance(connector, kind) and connector.availability().available:
            found.append(Candidate(name, connector, connector.options.model_validate(options.get(name, {}))))
    return found


async def watched(items: AsyncIterator[T], deadlines: Deadlines, provider: str) -> AsyncIterator[T]:
    """`items`, as long as they keep coming in time. Raises ProviderTimeout, and closes the source at any end."""
    end_s = clock.monotonic_s() + deadlines.total_ms / 1000
    limit_ms, what = deadlines.first_ms, "first item"
    async with aclosing(cast("Any", items)) as source:
        while True:
            left_s = min(limit_ms / 1000, end_s - clock.monotonic_s())
            try:
                async with asyncio.timeout(left_s):
                    item = await anext(source)
            except TimeoutError:
                raise ProviderTimeout(f"{provider}: no {what} within {limit_ms} ms") from None
            except StopAsyncIteration:
                return
            yield item
            limit_ms, what = deadlines.between_ms, "next item"


async def connected(opening: Any, deadlines: Deadlines, provider: str) -> Any:
    """The result of an `open` call, if it comes in time. Raises ProviderTimeout."""
    try:
        async with asyncio.timeout(deadlines.connect_ms / 1000):
            return await opening
    except TimeoutError:
        raise ProviderTimeout(f"{provider}: not connected within {deadlines.connect_ms} ms") from None


def as_failure(error: Exception, provider: str) -> MeshError:
    """Any exception of a provider as one of ours: its own text may hold what a caller said, so it is not repeated."""
    if isinstance(error, MeshError):
        return error
    return ConnectorError(f"{provider}: {type(error).__name__}")
