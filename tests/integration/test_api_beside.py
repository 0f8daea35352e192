"""Two transport workers: whichever of them is asked, the answer is the same."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ask, create, join, start_mesh

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two transport workers."""
    workers = {"stt": 1, "llm": 1, "tts": 1, "transport": 2}
    mesh = start_mesh(tmp_path_factory.mktemp("beside"), workers=workers)
    yield mesh
    mesh.stop()


async def asked(
    mesh: Mesh, index: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """What one of the transport workers answers."""

    def send() -> tuple[int, Any, dict[str, str]]:
        url = f"http://127.0.0.1:{mesh.find('transport', index).port}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read() or b"null"), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    return await asyncio.to_thread(send)


async def test_changes_sent_to_both_at_the_same_time_are_all_kept(pair: Mesh) -> None:
    made = create(pair)
    path = f"/sessions/{made['session_id']}"
    fields = {"start_ms": 123, "end_silence_ms": 456, "min_interrupt_ms": 789, "preroll_ms": 234}
    names = [*fields, *fields, *fields]
    bodies = [{"config": {"turns": {name: fields[name] + i}}} for i, name in enumerate(names)]
    answers = await asyncio.gather(
        *(asked(pair, i % 2, "PATCH", f"{path}/config", body) for i, body in enumerate(bodies))
    )
    assert [status for status, _, _ in answers] == [200] * 12, answers
    assert sorted(body["version"] for _, body, _ in answers) == list(range(2, 14))
    turns = (await asked(pair, 1, "GET", path))[1]["config"]["turns"]
    for name, value in fields.items():
        assert turns[name] - value in [i for i, one in enumerate(names) if one == name]


async def test_a_creation_sent_to_both_makes_one_session(pair: Mesh) -> None:
    request, key = {"config": instant.config()}, str(uuid4())
    send = [asked(pair, i % 2, "POST", "/sessions/with-config", request, **{"Idempotency-Key": key}) for i in range(6)]
    answers = await asyncio.gather(*send)
    assert {status for status, _, _ in answers} == {201}
    assert len({body["session_id"] for _, body, _ in answers}) == 1
    assert sorted(headers.get("Idempotent-Replayed", "") for _, _, headers in answers) == ["", *["true"] * 5]


async def test_the_one_without_the_caller_speaks_and_silences_and_changes(pair: Mesh) -> None:
    made = create(pair)
    path = f"/sessions/{made['session_id']}"
    async with join(made) as caller:  # at the first one
        await caller.wait_for("ready")
        assert (await asked(pair, 1, "POST", f"{path}/say", {"text": "Your taxi is here. " * 20}))[0] == 202
        await caller.wait_for("speech_started", turn=1)
        assert (await asked(pair, 1, "POST", f"{path}/interrupt"))[0] == 202
        await caller.wait_for("speech_ended", turn=1, interrupted=True)
        reply = {"config": {"connectors": {"llm": {"config": {"instant": {"reply": "Changed."}}}}}}
        assert (await asked(pair, 1, "PATCH", f"{path}/config", reply))[0] == 200
        await ask(caller, 7)
        await caller.wait_for("speech_ended", turn=2)
        assert "".join(one["text"] for one in caller.of("reply") if one["turn"] == 2).strip() == "Changed."
        assert (await asked(pair, 1, "DELETE", path))[0] == 204
        await caller.wait_for("session_ended")
