"""The exception classes of the libraries below, found by walking their modules, and one of each."""

import importlib
import inspect
import json
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import nats.js.errors
import pydantic_core
import pytest
from pydantic import ValidationError
from valkey import exceptions as valkey_exceptions

from meshag.sessions.config import SessionRequest

SECRET = "sk-canary, and my card number is 4111"
"""Stands in every exception that takes a text."""

ELSEWHERE = (
    "aiohttp.pytest_plugin", "aiohttp.test_utils", "aiohttp.web", "aiohttp.worker",  # its server: `api/problems.py`
    "jsonschema.__main__", "jsonschema.benchmarks", "jsonschema.cli", "jsonschema.tests",
    "nats.micro",  # services of its own kind, which we do not offer
    "onnxruntime.backend", "onnxruntime.datasets", "onnxruntime.quantization", "onnxruntime.tools",
    "onnxruntime.transformers",
    "pydantic._internal", "pydantic.v1", "pydantic.deprecated", "pydantic.mypy", "referencing.tests",
    "valkey.commands.graph", "valkey.ocsp",
)  # fmt: skip
"""Modules whose exceptions nobody here can meet."""

NEVER = {
    "valkey.exceptions.ChildDeadlockedError",  # of its pool for threads, after a fork
    "valkey.exceptions.SlotNotCoveredError", "valkey.exceptions.ValkeyClusterException",  # of its client for clusters
    "aiohttp.streams.EofStream",  # is caught where it is raised: by `async for`
}  # fmt: skip
"""Classes that nobody here can meet."""


def exceptions_of(*libraries: str) -> list[type[Exception]]:
    """The classes that the libraries' modules define, in a fixed order."""
    found: dict[str, type[Exception]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            for module in _modules_of(library):
                for name, value in vars(module).items():
                    if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning):
                        home = f"{value.__module__}.{value.__qualname__}"
                        own = value.__module__.partition(".")[0].lstrip("_") == library.partition(".")[0].lstrip("_")
                        if own and not name.startswith("_") and home not in NEVER:
                            found[home] = value
    return [found[home] for home in sorted(found)]


def _modules_of(library: str) -> Iterator[Any]:
    root = importlib.import_module(library)
    yield root
    for info in pkgutil.iter_modules(getattr(root, "__path__", []), f"{library}."):
        if not info.name.startswith(ELSEWHERE):
            try:
                yield from _modules_of(info.name)
            except ImportError:
                continue  # of another system, or of a library that is not there


def named(value: object) -> str | None:
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else None


def made(kind: type[Exception]) -> Exception:
    """One of this kind, with the secret wherever it takes a text."""
    if (odd := ODD.get(kind)) is not None:
        return odd()
    if issubclass(kind, json.JSONDecodeError):
        return kind("bad", SECRET, 0)
    if issubclass(kind, pydantic_core.ValidationError):
        return invalid()
    if issubclass(kind, nats.js.errors.APIError):
        nats.js.errors.APIError.__init__(error := kind(), code=500, description=SECRET, err_code=1)
        return error
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return kind(cast("Any", SimpleNamespace(host=SECRET, port=1, ssl=True, is_ssl=True)), ValueError(SECRET))
    if issubclass(kind, aiohttp.ClientConnectorError):
        key = SimpleNamespace(host=SECRET, port=1, ssl=True, is_ssl=True)
        return kind(*(("path",) if "Unix" in kind.__name__ else ()), cast("Any", key), OSError(1, SECRET))
    if issubclass(kind, aiohttp.ClientResponseError):
        return kind(cast("Any", SimpleNamespace(real_url=SECRET)), (), status=502, message=SECRET)
    if issubclass(kind, OSError):
        try:
            return kind(111, SECRET)
        except TypeError:
            return kind(SECRET)
    try:
        wanted = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return kind(SECRET)
    given = [
        1 if "int" in str(one.annotation) else b"x" if "bytes" in str(one.annotation) else SECRET
        for one in wanted
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.default is one.empty
    ]
    return kind(*given or _one(kind))


def _one(kind: type[Exception]) -> tuple[str, ...]:
    try:
        kind(SECRET)
    except TypeError:
        return ()
    return (SECRET,)


ODD: dict[type[Exception], Callable[[], Exception]] = {
    valkey_exceptions.AskError: lambda: valkey_exceptions.AskError("1 127.0.0.1:6379"),
    valkey_exceptions.MovedError: lambda: valkey_exceptions.MovedError("1 127.0.0.1:6379"),
    nats.js.errors.ConsumerSequenceMismatchError: lambda: nats.js.errors.ConsumerSequenceMismatchError(1, 1, 1),
    pydantic_core.PydanticKnownError: lambda: pydantic_core.PydanticKnownError("missing"),
}
"""What reads its own arguments."""


def invalid() -> ValidationError:
    """What pydantic says of a text that it repeats."""
    with pytest.raises(ValidationError, match="4111") as failed:
        SessionRequest.model_validate({"config": SECRET, SECRET: SECRET})
    return failed.value
