"""Providers over HTTP, on the transport service.

GET /providers                   every provider of every stage: installed, usable, in use or not
PUT /providers/{stage}/{name}    switch one off for all calls, or on again
"""

from aiohttp import web

from meshag.api import access
from meshag.api.service import WORKER, providers
from meshag.errors import ConfigError
from meshag.sessions.strict_json import read_json
from meshag.subjects import STAGES, Stage

SWITCHED: tuple[Stage, ...] = ("stt", "llm", "tts")
"""Stages whose providers can be switched: a caller's transport is chosen once, when the session is made."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    return [web.get("/providers", listing), web.put("/providers/{stage}/{name}", switch)]


@access.read
async def listing(request: web.Request) -> web.Response:
    """Every provider."""
    worker = request.app[WORKER]
    return web.json_response({"providers": {stage: providers(worker, stage) for stage in STAGES}})


@access.admin
async def switch(request: web.Request) -> web.Response:
    """`{"state": "off"}`: no call asks it any more, live ones included; `{"state": "on"}`: they may again."""
    worker = request.app[WORKER]
    stage = next((known for known in SWITCHED if known == request.match_info["stage"]), None)
    name = request.match_info["name"]
    if stage is None:
        raise ConfigError("no such stage has providers to switch", path="stage", fix="one of stt, llm, tts")
    if name not in worker.registry.names(stage):
        listed = ", ".join(worker.registry.names(stage)) or "none"
        raise ConfigError(f"{stage} has no such provider", path="name", fix=f"one of {listed}", code="provider_unknown")
    body = read_json(await request.read())
    wanted = body.get("state") if isinstance(body, dict) and len(body) == 1 else None
    if wanted not in ("on", "off"):
        raise ConfigError("state is not on or off", path="state", fix='send {"state": "off"} or {"state": "on"}')
    worker.breakers.switch(stage, name, on=wanted == "on")
    return web.json_response({"stage": stage, "provider": name, **worker.breakers.told(stage, name)})
