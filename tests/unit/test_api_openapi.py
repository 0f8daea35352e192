"""The OpenAPI document: of every route, in itself sound, and drawn by a page that loads nothing from elsewhere."""

import json
import re
from importlib import resources
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from aiohttp import web

from meshag.api import access
from meshag.api.openapi import PROBLEM, document
from meshag.api.operations import OPERATIONS
from meshag.api.page import HEADERS, file
from meshag.api.serve import routes
from meshag.api.service import service
from meshag.settings import Settings

pytestmark = pytest.mark.unit


def application() -> web.Application:
    return service(cast("Any", SimpleNamespace(settings=Settings())), routes())


def handlers() -> dict[str, Any]:
    """Every route's handler."""
    return {
        f"{route.method} {route.resource.canonical}": route.handler
        for route in application().router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


API = document(application())
OPERATION_LIST = [
    (f"{method.upper()} {path}", operation)
    for path, methods in API["paths"].items()
    for method, operation in methods.items()
]


def places(value: Any) -> set[str]:
    """Every schema that is named anywhere in a value."""
    if isinstance(value, dict):
        here = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return here.union(*map(places, value.values()))
    return set().union(*map(places, value)) if isinstance(value, list) else set()


def test_every_route_is_described_and_nothing_else() -> None:
    assert OPERATIONS.keys() == handlers().keys()
    assert dict(OPERATION_LIST).keys() == handlers().keys()


def test_every_operation_says_what_it_does_and_has_a_name_of_its_own() -> None:
    names = [operation["operationId"] for _, operation in OPERATION_LIST]
    assert len(names) == len(set(names))
    for name, operation in OPERATION_LIST:
        assert operation["summary"].endswith("."), name


def test_every_schema_that_is_named_is_there() -> None:
    there = {f"#/components/schemas/{name}" for name in API["components"]["schemas"]}
    assert places(API) <= there
    assert len(there) > 30
    for name, schema in API["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], name


@pytest.mark.parametrize(("name", "operation"), OPERATION_LIST, ids=[name for name, _ in OPERATION_LIST])
def test_every_operation_tells_its_problems_and_its_access(name: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        if not status.isdigit() or int(status) >= 400:
            assert answer["content"].keys() & {PROBLEM, "application/json"}, (name, status)
    assert set(re.findall(r"{(\w+)}", name)) == {one["name"] for one in operation["parameters"] if one["in"] == "path"}
    rule = access.rule_of(handlers()[name])
    wanted = {"everybody": [], "caller": [{"token": []}]}.get(str(rule), [{"key": []}, {"key_header": []}])
    assert operation["security"] == wanted
    assert ("401" in operation["responses"]) >= bool(wanted)


def test_examples_are_what_their_schemas_ask_for() -> None:
    count = 0
    for name, operation in OPERATION_LIST:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            schema = {**content["schema"], "components": API["components"]}
            jsonschema.validate(example["value"], schema)
            count += 1
        assert not content or content.get("examples") or name == "POST /webhooks/daily", name
    assert count >= 9


def test_what_stands_under_a_field_is_in_the_document() -> None:
    schemas = API["components"]["schemas"]
    assert schemas["Room"]["properties"]["room_name"]["description"].startswith("The room's real name")
    assert schemas["SayRequest"]["properties"]["text"]["description"].startswith("What the agent is to say")
    assert "title" not in schemas["SayRequest"]["properties"]["text"]


def test_the_document_is_the_same_for_everybody() -> None:
    assert json.dumps(document(application())) == json.dumps(API)


# -- the page ---------------------------------------------------------------------------------------------------------

HTML = resources.files("meshag.console").joinpath("docs.html").read_text("utf-8")
SCRIPT = resources.files("meshag.console").joinpath("docs.js").read_text("utf-8")


def test_the_page_loads_nothing_but_its_own_files() -> None:
    assert file("docs.html").headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', HTML)
    assert sorted(loaded) == ["openapi.json", "static/docs.css", "static/docs.js", "static/icon.svg"]
    for name in loaded[0:3]:
        assert name == "openapi.json" or file(name.removeprefix("static/")).status == 200
    assert not re.search(r"\son\w+=|<style|<script>|style=", HTML)


def test_the_page_can_be_used_without_seeing_it() -> None:
    assert '<html lang="en">' in HTML
    assert re.search(r'<p id="problem" role="alert">', HTML)
    assert re.search(r'<nav id="tags" aria-label="\w+">', HTML)
    for name in re.findall(r'getElementById\("(\w+)"\)', SCRIPT):
        assert f'id="{name}"' in HTML
    assert 'make("summary"' in SCRIPT  # what opens and closes is reached by the keyboard
