"""Which local models there are to ask for: the operator says. Loading one takes seconds, and a path is a file here."""

from pathlib import Path

from meshag.errors import ConfigError
from meshag.models.catalogue import CATALOGUE, DEFAULT_LLM, DEFAULT_STT, Purpose
from meshag.settings import Settings

_DEFAULTS: dict[Purpose, str] = {"stt": DEFAULT_STT, "llm": DEFAULT_LLM}


def offered(purpose: Purpose) -> list[str]:
    """Those of MESHAG_LOCAL_MODELS that serve this purpose, else the default. The first answers unless one is named."""
    known = {model.name: model.purpose for model in CATALOGUE}
    named = [item.strip() for item in Settings().local_models.split(",") if item.strip()]
    return [name for name in named if known.get(name, _purpose_of(name)) == purpose] or [_DEFAULTS[purpose]]


def check_offered(model: str, purpose: Purpose) -> None:
    """Raises ConfigError when sessions may not name this model."""
    names = offered(purpose)
    if model not in names:
        raise ConfigError(
            f"this mesh does not offer the model '{model}'",
            path=f"config.connectors.{purpose}.config.local.model",
            fix=f"one of: {', '.join(names)}; or start the mesh with MESHAG_LOCAL_MODELS={model}",
            code="model_not_offered",
        )


def _purpose_of(path: str) -> Purpose:
    return "llm" if Path(path).suffix == ".gguf" else "stt"
