"""docs/writing-a-provider.md: the provider on that page, taken from there, holds a conversation."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from meshes import ROOT, call, create, join, start_mesh
from standins import piped

pytestmark = pytest.mark.integration

PAGE = (ROOT / "docs" / "writing-a-provider.md").read_text()
ANSWER = "It left this morning. It will be with you tomorrow. "


def block(language: str) -> str:
    """The one block of that language on the page."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


class Parlour(BaseHTTPRequestHandler):
    """The server that the page speaks of."""

    prompts: ClassVar[list[str]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(body["prompt"])
        self.keys.append(self.headers["Authorization"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ANSWER.encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def parlour() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Parlour) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def install(where: Path) -> None:
    """The package as an installer leaves it: the module, and its metadata with the entry point of the page."""
    (where / "meshag_parlour.py").write_text(block("python"))
    group, name = re.findall(r'entry-points\."(.*?)"\]\n(.*)', block("toml"))[0]
    metadata = where / "meshag_parlour-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: meshag-parlour\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name.replace(chr(34), '')}\n")


async def test_the_provider_of_the_page_answers_a_caller(tmp_path: Path, parlour: str) -> None:
    install(tmp_path)
    mesh = start_mesh(
        tmp_path,
        workers={"stt": 0, "llm": 1, "tts": 0},
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        PARLOUR_URL=parlour,
        PARLOUR_KEY="a secret",
    )
    try:
        config = piped("text_chat")
        asked = json.loads(block("json"))["config"]["connectors"]["llm"]
        config["connectors"]["llm"] = asked  # type: ignore[index]
        created = create(mesh, config)
        async with join(created) as caller:
            await caller.type("Where is my order number 7?")
            await caller.wait_for("reply_ended", turn=1)
        assert caller.reply(1) == ANSWER
        assert caller.of("reply_started")[0]["provider"] == "parlour"
        prompt = Parlour.prompts[-1].splitlines()
        assert prompt[1:] == ["style: friendly", "user: Where is my order number 7?", "assistant: "]
        assert Parlour.keys[-1] == "Bearer a secret"
        told = call(mesh, "GET", "/providers")[1]["providers"]["llm"]["parlour"]
        assert told == {"available": True, "detail": parlour, "state": "closed"}
    finally:
        mesh.stop()
