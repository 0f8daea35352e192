"""A headless Chromium, driven over its own DevTools protocol."""

import asyncio
import base64
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from meshag import clock

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--mute-audio",
    "--remote-debugging-port=0",
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Where it is; None: not here."""


class Page:
    """One tab. `console` and `errors` keep what it complains about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.console: list[str] = []
        """Warnings and errors in the console."""
        self.errors: list[str] = []
        """Errors that nobody caught."""

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        number = len(self._asked) + 1
        self._asked[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(msgspec.json.encode({"id": number, "method": method, "params": params}).decode())
        return await asyncio.wait_for(self._asked[number], 20)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, as if the person had touched it. AssertionError when it throws."""
        result = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, script: str, timeout_s: float = 15.0) -> Any:
        """Wait until the expression is true."""
        end_s = clock.monotonic_s() + timeout_s
        while not (value := await self.run(script)):
            if clock.monotonic_s() > end_s:
                seen = await self.run("document.body.innerText")
                raise AssertionError(f"never: {script}\nerrors: {self.errors} {self.console}\npage:\n{seen}")
            await asyncio.sleep(0.05)
        return value

    async def open(self, url: str, *, before: str = "") -> None:
        """Go there. `before`: runs in the page before its own scripts."""
        if before:
            await self.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        await self.send("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """A key, pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            known = {"text": text} if text and kind == "keyDown" else {}
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **known)

    async def type(self, text: str) -> None:
        """Type into what has the focus, and Enter."""
        await self.send("Input.insertText", text=text)
        await self.press("Enter", 13, "\r")

    async def screenshot(self, *, width: int = 1000, height: int = 800, dark: bool = False) -> bytes:
        """What it looks like: a PNG."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        return base64.b64decode((await self.send("Page.captureScreenshot"))["data"])

    async def read(self) -> None:
        """Take what comes, until the browser goes."""
        async for message in self._socket:
            said = msgspec.json.decode(message.data)
            params = said.get("params", {})
            if "id" in said:
                answer = self._asked[said["id"]]
                if "error" in said:
                    answer.set_exception(AssertionError(said["error"]))
                else:
                    answer.set_result(said["result"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            elif said["method"] == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
                self.console.append(str(params["args"]))
            elif said["method"] == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@asynccontextmanager
async def chromium(profile: Path, *flags: str) -> AsyncIterator[Page]:
    """A browser of its own, and its tab. `profile`: a directory that it may fill."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *FLAGS,
        *flags,
        f"--user-data-dir={profile}",
        "about:blank",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{await _port(profile)}/json/list") as answer:
                tabs = await answer.json()
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with http.ws_connect(url, max_msg_size=0) as socket:
                page = Page(socket)
                reading = asyncio.create_task(page.read())
                for domain in ("Page", "Runtime", "Log"):
                    await page.send(f"{domain}.enable")
                yield page
                reading.cancel()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(profile: Path) -> int:
    """Where it listens: it writes this down once it does."""
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(30):
        while not (file.exists() and "\n" in file.read_text()):
            await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])
