"""Meshes whose callers meet in the rooms of a stand-in for Daily, and callers in those rooms."""

import asyncio
import base64
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from bench import instant
from meshag.embedded.mesh import Mesh
from meshes import ROOT, call
from vendors.daily import DOMAIN, KEY, DailyStandIn
from vendors.daily_hall import Room, packed, unpacked

SDK = ROOT / "tests" / "vendors" / "daily_sdk"
WEBHOOK_SECRET = base64.b64encode(b"the webhook's secret, 32 bytes..").decode()


class DailyInThread:
    """`with DailyInThread() as daily`: a stand-in with an event loop of its own, so that tests may block."""

    def __init__(self) -> None:
        self.vendor = DailyStandIn()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "DailyInThread":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.vendor.start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.vendor.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def env(self) -> dict[str, str]:
        """What a mesh finds it by, its SDK in place of the real one."""
        return {
            "DAILY_API_KEY": KEY,
            "DAILY_DOMAIN": DOMAIN,
            "DAILY_BASE_URL": f"{self.vendor.url}/v1",
            "DAILY_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "DAILY_STANDIN_URL": self.vendor.url,
            "PYTHONPATH": f"{SDK}:{ROOT}",
        }

    def room(self, created: dict[str, Any]) -> Room:
        """The room of a session."""
        return self.vendor.rooms[created["room_url"].rpartition("/")[2]]

    def agents(self, created: dict[str, Any]) -> list[str]:
        """The ids of the agents in a session's room."""
        room = self.vendor.rooms.get(created["room_url"].rpartition("/")[2])
        return [guest.id for guest in list(room.guests.values()) if guest.name == "Agent"] if room else []


def create(mesh: Mesh, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A session whose caller is in a room, on the instant providers."""
    made: dict[str, Any] = dict(config or instant.config())
    made["connectors"] = {**made["connectors"], "transport": {"primary": "daily"}}
    status, body = call(mesh, "POST", "/sessions/with-config", {"config": made, **more})
    assert status == 201, body
    return dict(body)


class RoomCaller:
    """`async with RoomCaller(daily.vendor.url, created) as caller`: somebody in a session's room."""

    def __init__(self, url: str, created: dict[str, Any]) -> None:
        room = created["room_url"].rpartition("/")[2]
        self._url = f"{url}/__room/{room}?token={created['token']}"
        self._web = aiohttp.ClientSession()
        self._socket: aiohttp.ClientWebSocketResponse
        self._reading: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self.id = ""
        self.events: list[dict[str, Any]] = []
        """App messages."""
        self.audio = bytearray()
        """What was heard: PCM16 at 24 kHz."""
        self.seen: list[dict[str, Any]] = []
        """What else the room told."""

    async def __aenter__(self) -> "RoomCaller":
        self._socket = await self._web.ws_connect(self._url)
        first = await self._socket.receive_json()
        assert first["type"] == "joined", first
        self.id = first["me"]["id"]
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._web.close()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                _, rate_hz, pcm = unpacked(message.data)
                assert rate_hz == 24_000
                self.audio += pcm
            else:
                event = msgspec.json.decode(message.data)
                if event["type"] == "app-message":
                    self.events.append(event["data"])
                else:
                    self.seen.append(event)
            self._arrived.set()

    async def speak(self, *frames: bytes) -> None:
        """Send frames of 20 ms at 16 kHz, in real time."""
        for frame in frames:
            await self._socket.send_bytes(packed(frame, 16_000))
            await asyncio.sleep(0.02)

    async def ask(self, number: int) -> None:
        """Speak one question."""
        body = [instant.speech_frame()] * 5
        await self.speak(
            instant.speech_frame(instant.START),
            *body,
            instant.speech_frame(instant.END, number),
            *[instant.SILENCE] * 5,
        )

    async def send(self, message: Any) -> None:
        """An app message to everybody."""
        await self._socket.send_json({"data": message})

    async def wait_for(self, kind: str, *, timeout_s: float = 15, **fields: Any) -> dict[str, Any]:
        """The first app message of a kind with these fields."""

        def fits(event: dict[str, Any]) -> bool:
            return event.get("type") == kind and all(event.get(name) == value for name, value in fields.items())

        return await self._until(lambda: next(filter(fits, self.events), None), f"{kind} {fields}", timeout_s)

    async def _until(self, find: Callable[[], Any], what: str, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                while (found := find()) is None:
                    self._arrived.clear()
                    await self._arrived.wait()
                return found
        except TimeoutError:
            kinds = [event.get("type") for event in self.events]
            raise TimeoutError(f"no {what} within {timeout_s} s; came: {kinds} and {self.seen}") from None
