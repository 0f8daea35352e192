"""Finds connectors: installed ones by entry point, others by the `MESHAG_CONNECTORS` setting.

A third-party package adds a provider with an entry point in one of the groups `meshag.stt`, `meshag.llm`, `meshag.tts`
and `meshag.transport`; nothing here is edited.
"""

import importlib
from importlib.metadata import EntryPoint, entry_points

from meshag.connectors.contracts import Connector, LlmConnector, SttConnector, TransportConnector, TtsConnector
from meshag.errors import ConfigError
from meshag.subjects import STAGES, Stage

CONTRACTS: dict[Stage, type[Connector]] = {
    "stt": SttConnector,
    "llm": LlmConnector,
    "tts": TtsConnector,
    "transport": TransportConnector,
}


class Registry:
    """The connectors that this process can use, each made once when first asked for."""

    def __init__(self, extra: str = "") -> None:
        """`extra`: `stt:name=module:Class`, comma separated. Raises ConfigError when one of them does not parse."""
        self._found: dict[Stage, dict[str, EntryPoint]] = {
            stage: {entry.name: entry for entry in entry_points(group=f"meshag.{stage}")} for stage in STAGES
        }
        self._made: dict[tuple[Stage, str], Connector] = {}
        for item in filter(None, (part.strip() for part in extra.split(","))):
            stage, _, rest = item.partition(":")
            name, _, target = rest.partition("=")
            if stage not in STAGES or not name or ":" not in target:
                raise ConfigError(
                    f"MESHAG_CONNECTORS: '{item}' is not stage:name=module:Class",
                    path="MESHAG_CONNECTORS",
                    fix="for example stt:mine=my_package.stt:MyStt",
                )
            self._found[stage][name] = EntryPoint(name, target, f"meshag.{stage}")

    def names(self, stage: Stage) -> list[str]:
        """The names known for a stage, sorted."""
        return sorted(self._found[stage])

    def get(self, stage: Stage, name: str) -> Connector:
        """The connector. Raises ConfigError when there is none of that name, or what is there does not load."""
        made = self._made.get((stage, name))
        if made is None:
            made = self._made[stage, name] = self._load(stage, name)
        return made

    def _load(self, stage: Stage, name: str) -> Connector:
        entry = self._found[stage].get(name)
        if entry is None:
            raise ConfigError(
                f"no {stage} provider is called '{name}'",
                path=f"connectors.{stage}",
                fix=f"available: {', '.join(self.names(stage)) or 'none'}",
                code="provider_unknown",
            )
        try:
            found = getattr(importlib.import_module(entry.module), entry.attr)
        except Exception as error:  # somebody else's module may raise anything while it is imported
            raise ConfigError(
                f"the {stage} provider '{name}' does not load: {type(error).__name__}: {error}",
                path=f"connectors.{stage}",
                fix=f"check that {entry.value} can be imported (its directory on PYTHONPATH)",
                code="provider_unloadable",
            ) from error
        if not (isinstance(found, type) and issubclass(found, CONTRACTS[stage])):
            raise ConfigError(
                f"the {stage} provider '{name}' ({entry.value}) is not a {CONTRACTS[stage].__name__}",
                path=f"connectors.{stage}",
                fix=f"derive it from meshag.connectors.contracts.{CONTRACTS[stage].__name__}",
                code="provider_unloadable",
            )
        connector: Connector = found()
        return connector

    async def aclose(self) -> None:
        """Close every connector that was made."""
        for connector in self._made.values():
            await connector.aclose()
        self._made.clear()
