"""The OpenAPI document against what runs: its examples are taken, and whatever else is sent is answered as it says."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import call, create
from standins import exchange, tidy

__all__ = ["tidy"]

pytestmark = pytest.mark.integration

EXAMPLES = 6
"""Requests to each operation, of each kind."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]

SWITCHING = "PUT /providers/{stage}/{name}"
"""Is not fuzzed: it would switch off what the other tests of the run talk to."""


@pytest.fixture(scope="module")
def api(mesh: Mesh) -> Any:
    status, headers, body = exchange(mesh, "GET", "/openapi.json")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert body["openapi"] == "3.1.0"
    return body


@pytest.fixture(scope="module")
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def operations(api: Any) -> list[tuple[str, str, Any]]:
    return [(method, path, told) for path, methods in api["paths"].items() for method, told in methods.items()]


def test_the_examples_are_taken(mesh: Mesh, api: Any) -> None:
    count = 0
    for method, path, told in operations(api):
        content = told.get("requestBody", {}).get("content", {}).get("application/json", {})
        for name, example in content.get("examples", {}).items():
            if "participants" in path or "dial-out" in path:
                continue  # needs a room of a provider's: tests of Daily's
            body = on_instant(example["value"], path)
            address = path.replace("{stage}", "llm").replace("{name}", "instant")
            if "{id}" in path:
                address = address.replace("{id}", create(mesh)["session_id"])
            status, answer = call(mesh, method.upper(), address, body)
            if path.endswith("/say"):
                assert (status, answer["code"]) == (409, "nobody_listening"), name
            else:
                assert status in (200, 201), (path, name, answer)
            count += 1
    assert count >= 9
    assert call(mesh, "PUT", "/providers/llm/instant", {"state": "on"})[0] == 200


def on_instant(body: Any, path: str) -> Any:
    """An example with the test's providers in place of the local ones."""
    made = copy.deepcopy(body)
    if path == "/sessions":
        options = made.setdefault("options", {})
        options["config"] = {**instant.config(), **options.get("config", {})}
    elif path == "/sessions/with-config":
        made["config"] = {**instant.config(), **made["config"]}
    return made


class Sender:
    """Sends what it is given, and holds the answer against the document."""

    def __init__(self, mesh: Mesh, http: requests.Session) -> None:
        self.mesh, self.http = mesh, http
        self.live = create(mesh)["session_id"]
        """A session that is there."""
        self.seen: set[str] = set()
        """Every route with every status that it has answered."""

    def send(self, case: Any) -> None:
        name = f"{case.operation.method.upper()} {case.operation.path}"
        if "id" in case.path_parameters and name != "GET /sessions/{id}":
            case.path_parameters["id"] = self.live
        answer = case.call(session=self.http, timeout=20)
        case.validate_response(answer, checks=CHECKS)
        self.seen.add(f"{name} {answer.status_code}")
        if answer.status_code == 201 and "room_url" in answer.json():
            call(self.mesh, "DELETE", f"/sessions/{answer.json()['session_id']}")
        if name.startswith("DELETE") and answer.status_code == 204:
            self.live = create(self.mesh)["session_id"]

    def fuzz(self, operation: Any, mode: schemathesis.GenerationMode) -> None:
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            self.send(case)

        send()


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_whatever_is_sent_is_answered_as_the_document_says(
    mesh: Mesh, api: Any, http: requests.Session, mode: schemathesis.GenerationMode
) -> None:
    told = copy.deepcopy(api)
    for _, _, operation in operations(told):
        del operation["responses"]["default"]  # else every status would be one that it tells of
    schema = schemathesis.openapi.from_dict(told)
    schema.config.base_url = mesh.url
    sender = Sender(mesh, http)
    for found in schema.get_all_operations():
        operation = found.ok()
        name = f"{operation.method.upper()} {operation.path}"
        if name != SWITCHING and (mode.is_positive or operation.body or operation.query or operation.headers):
            sender.fuzz(operation, mode)
    seen = sender.seen
    if mode.is_positive:
        assert {"GET /sessions/{id}/transcript 200", "DELETE /sessions/{id} 204", "GET /providers 200"} <= seen
        assert {"POST /sessions/{id}/say 409", "POST /sessions/{id}/extend 200"} <= seen
    else:
        assert {"POST /sessions/{id}/say 422", "POST /sessions 422", "GET /sessions 422"} <= seen
    assert not [one for one in seen if re.search(" 5..$", one)]
