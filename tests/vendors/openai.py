"""OpenAI as a whole, at one address as in life: language models and speech recognition, each with faults of its own."""

import asyncio

from aiohttp import web

from vendors.faults import cut, noting
from vendors.openai_llm import OpenAiLlmStandIn
from vendors.openai_stt import OpenAiSttStandIn


class OpenAiStandIn:
    """`async with OpenAiStandIn(key="sk-test") as vendor`; its base address is `vendor.url + "/v1"`."""

    def __init__(self, key: str = "sk-test") -> None:
        self.llm, self.stt = OpenAiLlmStandIn(key=key), OpenAiSttStandIn(key=key)
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.BaseTransport] = set()

    async def start(self, port: int = 0) -> None:
        """Listen."""
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[noting(self._connections)])
        app.add_routes([route for part in (self.llm, self.stt) for route in part.routes() if "/__" not in route.path])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def cut(self) -> None:
        """Break every connection that is in use."""
        cut(self._connections)

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> "OpenAiStandIn":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
