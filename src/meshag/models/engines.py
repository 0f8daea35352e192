"""Keeps loaded models: each is loaded once in a process, off the event loop, however many sessions ask for it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from meshag.errors import ModelError

Engine = TypeVar("Engine")

MOST = 3
"""Models of one kind that a process holds at most: sessions may ask for their own, memory is shared by all."""


class Engines(Generic[Engine]):
    """The loaded models of one connector."""

    def __init__(self, load: Callable[[Path], Engine]) -> None:
        """`load` blocks, and raises ModelError."""
        self._load = load
        self._loaded: dict[Path, Engine] = {}
        self._loading = threading.Lock()

    async def get(self, path: Path) -> Engine:
        """The model at `path`, loaded when it is not yet. Raises ModelError; a later call then tries again."""
        engine = self._loaded.get(path)
        return await asyncio.to_thread(self._get, path) if engine is None else engine

    def _get(self, path: Path) -> Engine:
        with self._loading:
            engine = self._loaded.get(path)
            if engine is None:
                if len(self._loaded) >= MOST:
                    raise ModelError(f"this process already holds {MOST} models of the kind", code="too_many_models")
                engine = self._loaded[path] = self._load(path)
            return engine

    def clear(self) -> list[Engine]:
        """Forget all of them, and return them to be closed."""
        engines = list(self._loaded.values())
        self._loaded.clear()
        return engines
