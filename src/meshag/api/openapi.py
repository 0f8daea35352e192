"""The API, described by itself.

GET /openapi.json    OpenAPI 3.1, made of the route table, the models of the bodies and the structs of the answers
GET /docs            the same for people, without anything from elsewhere
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from pydantic.json_schema import models_json_schema

from meshag import __version__
from meshag.api import access
from meshag.api.idempotency import HEADER, REPLAYED
from meshag.api.operations import OPERATIONS, Operation, Query, models, parts, structs
from meshag.api.page import file

PROBLEM = "application/problem+json"

_PLACE = "#/components/schemas/{}"

_PATHS: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[a-z2-7]{26}$"},
    "stage": {"type": "string", "enum": ["stt", "llm", "tts"]},
}
"""What may stand in a path; anything where it is not said."""

_EVERYWHERE: dict[int, str] = {
    400: "What came is not what HTTP or JSON is.",
    403: "Another site's page asks, or the key may not do this.",
    422: "What was asked for cannot be; `path` names the field, `fix` what to do.",
    429: "Asked too often: not before `Retry-After` seconds.",
    503: "Something that this needs is away, or nobody has room: come again after `Retry-After` seconds.",
}
"""What may be wrong with any request."""


def routes() -> list[web.RouteDef]:
    """The routes of the transport service."""
    made: list[bytes] = []

    @access.everybody
    async def openapi(request: web.Request) -> web.Response:
        """This document."""
        if not made:
            made.append(msgspec.json.encode(document(request.app)))
        return web.Response(body=made[0], content_type="application/json", charset="utf-8")

    return [web.get("/openapi.json", openapi), web.get("/docs", docs)]


@access.everybody
async def docs(request: web.Request) -> web.Response:
    """This document, for people."""
    return file("docs.html")


def document(app: web.Application) -> dict[str, Any]:
    """The OpenAPI document of an application's routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            path = route.resource.canonical
            paths.setdefault(path, {})[route.method.lower()] = _operation(route.method, path, route.handler)
    tags = list(dict.fromkeys(one.tag for one in OPERATIONS.values()))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MeshAG",
            "version": __version__,
            "summary": "Agents that talk: sessions, what is said in them, and who serves them.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": components(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: `mesh_…`. See docs/access.md."},
                "key_header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
                "token": {"type": "apiKey", "in": "query", "name": "token", "description": "A session's own token."},
            },
        },
    }


@cache
def components() -> dict[str, Any]:
    """The schemas of everything that is taken and answered, by name."""
    _, taken = models_json_schema(
        [(model, "validation") for model in models()], ref_template=_PLACE.replace("{}", "{model}")
    )
    _, answered = msgspec.json.schema_components(structs(), ref_template=_PLACE.replace("{}", "{name}"))
    both = taken["$defs"].keys() & answered.keys()
    if both:
        raise ValueError(f"two schemas have the same name: {', '.join(sorted(both))}")
    for kind in (part for struct in structs() for part in _structs_in(struct)):
        for name, what in _docstrings(kind).items():
            schema = answered[kind.__name__]["properties"][name]
            answered[kind.__name__]["properties"][name] = {**schema, "description": what}
    return {**_tidy(taken["$defs"]), **answered}


def _operation(method: str, path: str, handler: Any) -> dict[str, Any]:
    told = OPERATIONS.get(f"{method} {path}", Operation("other", {200: {}}))
    rule = access.rule_of(handler)
    names = re.findall(r"{(\w+)}", path)
    first, _, rest = (inspect.getdoc(handler) or "").partition("\n")
    made: dict[str, Any] = {
        "operationId": f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}",
        "tags": [told.tag],
        "summary": first,
        "parameters": [
            *(_path(name) for name in names),
            *(_query(one) for one in told.query),
        ],
        "responses": _responses(told, rule, names),
    }
    if rest.strip():
        made["description"] = rest.strip()
    if told.once:
        made["parameters"].append(
            {
                "name": HEADER,
                "in": "header",
                "description": "A name of your own for this request: sent again within a day, it makes nothing new.",
                "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            }
        )
    if told.body is not None:
        schema = told.body if isinstance(told.body, Mapping) else {"$ref": _PLACE.format(told.body.__name__)}
        content: dict[str, Any] = {"schema": schema}
        if told.examples:
            content["examples"] = {name: {"value": value} for name, value in told.examples.items()}
        made["requestBody"] = {"required": True, "content": {told.media: content}}
    made["security"] = {"caller": [{"token": []}], "everybody": []}.get(str(rule), [{"key": []}, {"key_header": []}])
    if rule in ("read", "write", "admin"):
        made["x-scope"] = rule
    return made


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _PATHS.get(name, {"type": "string"})}


def _query(one: Query) -> dict[str, Any]:
    return {"name": one.name, "in": "query", "required": one.required, "description": one.what, "schema": one.schema}


def _responses(told: Operation, rule: str | None, names: list[str]) -> dict[str, Any]:
    wrong = {**_EVERYWHERE, **told.problems}
    if rule not in ("everybody", None):
        wrong.setdefault(401, "The key or token is missing, wrong or expired.")
    if names:
        what = "session, or it has ended" if "id" in names else names[-1]
        wrong.setdefault(404, f"There is no such {what}.")
    if told.body is not None:
        wrong.setdefault(413, "The body is longer than 64 KB.")
    found: dict[str, Any] = {}
    for status, answer in told.answers.items():
        found[str(status)] = {"description": HTTPStatus(status).phrase}
        if answer is not None:
            found[str(status)]["content"] = dict(_content(part) for part in parts(answer))
        if told.once:
            found[str(status)]["headers"] = {
                "Location": {"schema": {"type": "string"}, "description": "The session's own address."},
                REPLAYED: {"schema": {"const": "true"}, "description": "It had been made before."},
            }
    problem = {PROBLEM: {"schema": {"$ref": _PLACE.format("Problem")}}}
    for status, what in sorted(wrong.items()):
        found.setdefault(str(status), {"description": what, "content": problem})
    found["default"] = {"description": "Something else is wrong.", "content": problem}
    return found


def _content(answer: Any) -> tuple[str, dict[str, Any]]:
    """A media type and what it holds."""
    if isinstance(answer, str):
        return answer, {"schema": {"type": "string"}}
    schema = answer if isinstance(answer, Mapping) else {"$ref": _PLACE.format(answer.__name__)}
    return "application/json", {"schema": schema}


def _structs_in(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """A struct, and those that its fields hold."""
    found: dict[type[msgspec.Struct], None] = {}

    def look(place: Any) -> None:
        if isinstance(place, msgspec.inspect.StructType):
            if place.cls not in found:
                found[place.cls] = None
                for part in place.fields:
                    look(part.type)
        elif isinstance(place, msgspec.inspect.UnionType):
            for one in place.types:
                look(one)
        elif isinstance(place, msgspec.inspect.ListType):
            look(place.item_type)
        elif isinstance(place, msgspec.inspect.DictType):
            look(place.value_type)

    look(msgspec.inspect.type_info(kind))
    return list(found)


def _docstrings(kind: type) -> dict[str, str]:
    """What stands under a struct's fields."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(inspect.cleandoc(what.value.value).split())
        for field, what in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(what, ast.Expr)
        and isinstance(what.value, ast.Constant)
        and isinstance(what.value.value, str)
    }


def _tidy(schemas: dict[str, Any]) -> dict[str, Any]:
    """Without the titles that pydantic makes of the fields' names."""

    def tidy(value: Any, *, named: bool = False) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if named or k != "title" or not isinstance(v, str)}
            return {k: tidy(v, named=k in ("properties", "$defs")) for k, v in kept.items()}
        return [tidy(one) for one in value] if isinstance(value, list) else value

    return dict(tidy(schemas, named=True))
