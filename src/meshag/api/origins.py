"""Which sites' pages may use a service: its own, and those that MESHAG_CORS_ORIGINS names."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from meshag.api.problems import Handler, problem
from meshag.settings import LOOPBACK, Settings

METHODS = "GET, POST, PUT, PATCH, DELETE"

SENT = "Authorization, Content-Type, Idempotency-Key, X-API-Key, X-Request-ID"
"""Headers that a page of another site may send."""

SHOWN = "Location, Retry-After, X-Request-ID"
"""Headers of an answer that it may read."""

PREFLIGHT_S = 600
"""A browser need not ask again for so long."""


def known_pages_only(settings: Settings) -> Middleware:
    """Refuses browsers that show another site's page: that page could otherwise talk to a service on this machine."""
    public = _address(settings.public_url)
    own = {settings.host, _name(public) or settings.host} | LOOPBACK
    listed = settings.origins

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if settings.host in LOOPBACK and _name(request.host) not in own:
            return problem(403, "host_refused", "this service answers to its own name only; see MESHAG_PUBLIC_URL")
        for origin in request.headers.getall("Origin", []):  # "null", of a sandboxed frame or a file, is foreign too
            address = _address(origin)
            if origin not in listed and (not address or address not in (request.host.lower(), public)):
                return problem(403, "origin_refused", "pages of other sites may not use this service")
        if (
            request.method == "OPTIONS"
            and _listed(request, listed)
            and "Access-Control-Request-Method" in request.headers
        ):
            return web.Response(status=204, headers=_PREFLIGHT)  # without a key: browsers send none with it
        return await handler(request)

    return check


def telling_pages(settings: Settings) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """For `on_response_prepare`: tells browsers that a page of a listed site may read the answer."""
    listed = settings.origins

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        if not listed:
            return
        response.headers.add("Vary", "Origin")
        if origin := _listed(request, listed):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = SHOWN

    return tell


_PREFLIGHT = {
    "Access-Control-Allow-Methods": METHODS,
    "Access-Control-Allow-Headers": SENT,
    "Access-Control-Max-Age": str(PREFLIGHT_S),
}


def _listed(request: web.Request, listed: frozenset[str]) -> str:
    """The one listed origin that a request comes from; empty for any other."""
    origins = request.headers.getall("Origin", [])
    return origins[0] if len(origins) == 1 and origins[0] in listed else ""


def _address(url: str) -> str:
    """Host and port in a URL, in lower case; empty where there are none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _name(address: str) -> str:
    """The host in `host:port`; empty where there is none."""
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""
