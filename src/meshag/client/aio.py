"""The client for programs with an event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Literal, TypeVar

import aiohttp

from meshag.api import schemas
from meshag.client import calls
from meshag.client.answers import ApiError, read, silent
from meshag.client.calls import BaseClient, Call, Json
from meshag.client.feed import Event, watch

T = TypeVar("T")


class AsyncClient(BaseClient):
    """The API of a mesh: `async with AsyncClient() as mesh`. Every method raises ApiError, and may be cancelled.

    What the service had no room for (429, 503), and what got lost on the way and may be asked twice, is asked again
    inside `timeout_s`.
    """

    _http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections. Idempotent."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def create(
        self, request: Json | bytes | None = None, *, idempotency_key: str | None = None
    ) -> schemas.Created:
        """Make a session. `request`: the body of `POST /sessions/with-config`; None: a voice chat on local providers.

        `idempotency_key`: another call with the same one, from another process even, makes no second session.
        """
        return await self._do(calls.create(request, idempotency_key))

    async def create_room(
        self,
        provider: str = "websocket",
        *,
        room_config: Json | None = None,
        participant_config: Json | None = None,
        options: Json | None = None,
        idempotency_key: str | None = None,
    ) -> schemas.Room:
        """Make a session and the room where it is joined: the body of `POST /sessions`."""
        parts = {"room_config": room_config, "participant_config": participant_config, "options": options}
        request = {"provider": provider, **{name: part for name, part in parts.items() if part is not None}}
        return await self._do(calls.create_room(request, idempotency_key))

    async def list(self, *, status: schemas.Status | None = None, page: int = 100) -> AsyncIterator[schemas.Summary]:
        """Every session, the newest first, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            found = await self._do(calls.page(status, page, cursor))
            for one in found.sessions:
                yield one
            cursor = found.next_cursor
            if cursor is None:
                return

    async def show(self, session: str) -> schemas.Session:
        """A session: status, configuration, owners, latencies, what it has cost."""
        return await self._do(calls.show(session))

    async def change(self, session: str, patch: Json) -> schemas.Changed:
        """Change the configuration from the next turn on: a merge patch of what the session was made with."""
        return await self._do(calls.change(session, patch))

    async def extend(self, session: str, ttl_s: int) -> schemas.Extended:
        """Let it live `ttl_s` seconds from now."""
        return await self._do(calls.extend(session, ttl_s))

    async def token(self, session: str) -> str:
        """Another token for its caller."""
        return (await self._do(calls.token(session))).token

    async def end(self, session: str) -> None:
        """End it. Ending it again is no error."""
        await self._do(calls.end(session))

    # -- what is said -------------------------------------------------------------------------------------------------

    async def say(self, session: str, text: str, *, interrupt: bool = True) -> None:
        """The agent says this; `interrupt`: in place of the answer on its way. Raises Conflict where nobody listens."""
        await self._do(calls.say(session, text, interrupt))

    async def interrupt(self, session: str) -> None:
        """The agent is silent at once."""
        await self._do(calls.interrupt(session))

    async def history(self, session: str) -> schemas.History:
        """What was said, turn by turn."""
        return await self._do(calls.history(session))

    async def transcript(self, session: str) -> schemas.Transcript:
        """What was said, with times."""
        return await self._do(calls.transcript(session))

    async def transcript_text(self, session: str, form: Literal["text", "vtt"] = "text") -> str:
        """The same for people, or as subtitles (WebVTT)."""
        return (await self._do(calls.transcript_text(session, form))).decode()

    # -- providers ----------------------------------------------------------------------------------------------------

    async def providers(self) -> schemas.Providers:
        """Every provider of every stage."""
        return await self._do(calls.providers())

    async def switch(self, stage: str, name: str, state: Literal["on", "off"]) -> schemas.Switched:
        """Switch a provider off for all calls, or on again."""
        return await self._do(calls.switch(stage, name, state))

    # -- workers ------------------------------------------------------------------------------------------------------

    async def workers(self) -> schemas.FleetWorkers:
        """Every worker that is alive."""
        return await self._do(calls.workers())

    async def drain(self, worker: str) -> schemas.FleetWorker:
        """Have a worker hand its sessions over and end."""
        return await self._do(calls.drain(worker))

    # -- events -------------------------------------------------------------------------------------------------------

    def events(
        self, *, after: int | None = None, types: Sequence[str] = (), sessions: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """What happens to the sessions, without an end; after a lost connection it goes on where it was.

        `after`: the id of the last event that you have; None: from now on. `types`, `sessions`: only these. Where some
        are no longer kept there is one of the type `events_lost`. Raises ApiError when it may not watch.
        """
        return watch(self._session(), self._server, after, types, sessions)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Anything else: the JSON that a route answers; None for no body."""
        kind: type[Any] = type(None) if method == "DELETE" else dict
        return await self._do(Call(method, path, kind, body, repeatable=method != "POST"))

    async def _do(self, call: Call[T]) -> T:
        attempts = self._attempts()
        while True:
            try:
                return read(call.kind, *await self._send(call, attempts.left_s), self.url)
            except ApiError as error:
                await asyncio.sleep(attempts.pause_s(call, error))

    async def _send(self, call: Call[Any], timeout_s: float) -> tuple[int, dict[str, str], bytes]:
        limit = aiohttp.ClientTimeout(total=timeout_s)
        headers = self._server.headers_of(call)
        asking = self._session().request(
            call.method, self.url + call.path, data=call.body, headers=headers, timeout=limit, allow_redirects=False
        )
        try:
            async with asking as answer:
                return answer.status, dict(answer.headers), await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise silent(self.url, error) from None

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(trust_env=not self._server.local)
        return self._http
