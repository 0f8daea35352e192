"""MeshAG: a distributed orchestrator for AI agents that talk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshag.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients, when they are asked for: nobody else waits for what they need."""
    if name in ("AsyncClient", "Client"):
        from meshag import client

        return getattr(client, name)
    raise AttributeError(f"module 'meshag' has no attribute '{name}'")
