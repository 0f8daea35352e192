"""The API from Python: `meshag.Client`, and `meshag.AsyncClient` for asyncio. See docs/client.md."""

from typing import TYPE_CHECKING, Any

from meshag.client.answers import (
    ApiError,
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Unavailable,
    Unreachable,
)
from meshag.client.blocking import Client

if TYPE_CHECKING:
    from meshag.client.aio import AsyncClient
    from meshag.client.feed import Event

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "Event",
    "InvalidRequest",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "RateLimited",
    "Unavailable",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    """What needs aiohttp, when it is asked for: the command line does without."""
    if name == "AsyncClient":
        from meshag.client.aio import AsyncClient

        return AsyncClient
    if name == "Event":
        from meshag.client.feed import Event

        return Event
    raise AttributeError(f"module 'meshag.client' has no attribute '{name}'")
