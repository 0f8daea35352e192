"""The page on which a person talks to the agent."""

from importlib import resources

from aiohttp import web

from meshag.api import access

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
"""What the page is made of, by the ends of the files' names."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[web.RouteDef]:
    """The page and what it loads."""
    return [web.get("/", index), web.get("/static/{name}", static)]


@access.everybody
async def index(request: web.Request) -> web.Response:
    """The page itself."""
    return file("index.html")


@access.everybody
async def static(request: web.Request) -> web.Response:
    """A file of the page."""
    return file(request.match_info["name"])


def file(name: str) -> web.Response:
    """The named file. The name is looked up, never joined to a path."""
    files = {entry.name: entry for entry in resources.files("meshag.console").iterdir()}
    kind = TYPES.get(name.rpartition(".")[2])
    if kind is None or name not in files:
        raise web.HTTPNotFound
    return web.Response(text=files[name].read_text("utf-8"), content_type=kind, charset="utf-8", headers=HEADERS)
