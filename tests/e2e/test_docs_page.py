"""The API's page in a real browser: drawn from the document, reached by the keyboard, without a complaint."""

from pathlib import Path

import pytest
from browser import CHROMIUM, chromium

from meshag.api.operations import OPERATIONS
from meshag.embedded.mesh import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


async def test_every_operation_is_drawn(tmp_path: Path, mesh: Mesh) -> None:
    async with chromium(tmp_path / "profile") as page:
        await page.open(f"{mesh.url}/docs")
        await page.until(f"document.querySelectorAll('details').length === {len(OPERATIONS)}")
        names = await page.run("[...document.querySelectorAll('summary')].map(one => one.innerText)")
        assert any(name.startswith("POST") and "/sessions/{id}/say" in name for name in names)
        await page.run("document.getElementById('conversation.say').querySelector('summary').focus()")
        await page.press("Enter", 13, "\r")
        await page.until("document.getElementById('conversation.say').open")
        shown = await page.run("document.getElementById('conversation.say').innerText")
        assert "What the agent is to say." in shown
        assert f"curl -X POST '{mesh.url}/sessions/{{id}}/say'" in shown
        assert '-d \'{"text":"Your taxi is here."}\'' in shown
        await page.open(f"{mesh.url}/docs#rooms.create")
        assert (await page.run("document.getElementById('problem').textContent")) == ""
        (tmp_path / "docs.png").write_bytes(await page.screenshot())
        assert page.errors == []
        assert page.console == []
