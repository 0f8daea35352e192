"""Who may watch what: a key its own sessions, an admin's everybody's; how many may; and how they are let go."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from meshag.api import access, events
from meshag.api.feed import Feed
from meshag.api.problems import as_problems
from meshag.api.service import WORKER
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.embedded.servers import EmbeddedServers
from meshag.ids import KeyId, new_session_id
from meshag.sessions.events import Events
from meshag.sessions.keys import ApiKey, Scope
from watchers import Watch

pytestmark = pytest.mark.integration


class Keys:
    """The keys that are not revoked."""

    def __init__(self) -> None:
        self.known = {name: self._key(name, scope) for name, scope in SCOPES.items()}

    def _key(self, name: str, scope: Scope) -> ApiKey:
        return ApiKey(
            id=KeyId(name), name=name, digest="", scope=scope, session_quota=0, rate_per_s=0, created_at_s=0.0
        )

    async def find(self, key: str) -> ApiKey | None:
        return self.known.get(key)


SCOPES: dict[str, Scope] = {"anna": "read", "ben": "write", "root": "admin"}


@asynccontextmanager
async def served(servers: EmbeddedServers, keys: Keys | None = None) -> AsyncIterator[tuple[str, Events, Feed]]:
    """The route, open, or with the key that the query names."""
    bus = await Bus.connect(servers.nats_url, name="test")
    acknowledged, feed = Acknowledged(bus), Feed(bus)
    await acknowledged.start()
    await feed.start()

    @web.middleware
    async def with_key(request: web.Request, handler: Any) -> web.StreamResponse:
        if keys is not None:
            request[access.API_KEY] = keys.known[request.query["key"]]
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[as_problems, with_key])
    app[WORKER] = SimpleNamespace(store=SimpleNamespace(keys=keys))  # type: ignore[assignment]
    app[events.FEED] = feed
    app.add_routes(events.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}", Events(acknowledged), feed
    finally:
        await feed.aclose()
        await runner.cleanup()
        await acknowledged.aclose()
        await bus.close()


async def test_a_key_sees_its_own_sessions_live_and_afterwards_and_an_admin_all(servers: EmbeddedServers) -> None:
    hers, his, nobodys = new_session_id(), new_session_id(), new_session_id()
    async with served(servers, Keys()) as (url, told, feed):
        before = feed.last
        async with Watch(url, key="anna") as anna, Watch(url, key="ben") as ben, Watch(url, key="root") as root:
            for session, key in ((hers, "anna"), (his, "ben"), (nobodys, ""), (hers, "anna")):
                await told.tell("session_updated", session, key, version=2)
            await root.wait(lambda: len(root.events()) == 4)
            await anna.wait(lambda: len(anna.events()) == 2)
            await ben.wait(lambda: len(ben.events()) == 1)
        async with Watch(url, key="anna", after=before, sessions=f"{hers},{his},{nobodys}") as again:
            await again.wait(lambda: len(again.events()) == 2)
            await again.socket.send_json({"type": "subscribe", "sessions": [his]})
            await again.wait(lambda: again.of("subscribed"))
            await told.tell("session_updated", his, "ben", version=3)
            await told.tell("session_ended", his, "anna", reason="ended")  # of hers, to know that it is past
            await again.wait(lambda: "session_ended" in again.types())
    assert [event["session_id"] for event in root.events()] == [hers, his, nobodys, hers]
    assert {event["session_id"] for event in anna.events()} == {hers}
    assert {event["session_id"] for event in ben.events()} == {his}
    assert again.types() == ["session_updated", "session_updated", "session_ended"]


async def test_without_keys_everybody_sees_everything(servers: EmbeddedServers) -> None:
    async with served(servers) as (url, told, _), Watch(url) as watch:
        await told.tell("session_updated", new_session_id(), "anna", version=2)
        await watch.wait(lambda: watch.events())


async def test_a_revoked_key_watches_no_longer(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_S", 0.2)
    keys = Keys()
    async with served(servers, keys) as (url, _, _), Watch(url, key="anna") as anna, Watch(url, key="ben") as ben:
        await anna.wait(lambda: anna.of("ping"))
        del keys.known["anna"]
        await anna.wait(lambda: anna.closed)
        assert anna.closed == (aiohttp.WSCloseCode.POLICY_VIOLATION, "the API key was revoked")
        pings = len(ben.of("ping"))
        await ben.wait(lambda: len(ben.of("ping")) > pings + 1)
        assert ben.closed is None


async def test_no_more_watch_than_may_and_those_who_go_make_room(
    servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_WATCHERS", 1)
    async with served(servers) as (url, _, feed):
        async with Watch(url):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with Watch(url):
                    pass
            assert refused.value.status == 503
        async with Watch(url) as again:
            assert again.messages[0]["type"] == "hello"
        assert len(feed.open) <= 1


async def test_a_service_that_ends_sends_its_watchers_elsewhere(servers: EmbeddedServers) -> None:
    async with served(servers) as (url, _, feed), Watch(url) as watch:
        await feed.aclose()
        await watch.wait(lambda: watch.closed)
        assert watch.closed is not None
        assert watch.closed[0] == aiohttp.WSCloseCode.TRY_AGAIN_LATER
        assert "restarts" in watch.closed[1]
