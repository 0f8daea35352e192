"""The client for programs without an event loop."""

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, TypeVar

from meshag import clock
from meshag.api import schemas
from meshag.client import calls
from meshag.client.answers import ApiError, read, silent, stranger
from meshag.client.calls import BaseClient, Call, Json

T = TypeVar("T")


class Client(BaseClient):
    """The API of a mesh. Every method raises ApiError, and blocks: in an event loop use AsyncClient.

    What the service had no room for (429, 503), and what got lost on the way and may be asked twice, is asked again
    inside `timeout_s`.
    """

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        direct = [urllib.request.ProxyHandler({})] if self._server.local else []
        return urllib.request.build_opener(*direct)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def create(self, request: Json | bytes | None = None, *, idempotency_key: str | None = None) -> schemas.Created:
        """Make a session. `request`: the body of `POST /sessions/with-config`; None: a voice chat on local providers.

        `idempotency_key`: another call with the same one, from another process even, makes no second session.
        """
        return self._do(calls.create(request, idempotency_key))

    def create_room(
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
        return self._do(calls.create_room(request, idempotency_key))

    def list(self, *, status: schemas.Status | None = None, page: int = 100) -> Iterator[schemas.Summary]:
        """Every session, the newest first, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            found = self._do(calls.page(status, page, cursor))
            yield from found.sessions
            cursor = found.next_cursor
            if cursor is None:
                return

    def show(self, session: str) -> schemas.Session:
        """A session: status, configuration, owners, latencies, what it has cost."""
        return self._do(calls.show(session))

    def change(self, session: str, patch: Json) -> schemas.Changed:
        """Change the configuration from the next turn on: a merge patch of what the session was made with."""
        return self._do(calls.change(session, patch))

    def extend(self, session: str, ttl_s: int) -> schemas.Extended:
        """Let it live `ttl_s` seconds from now."""
        return self._do(calls.extend(session, ttl_s))

    def token(self, session: str) -> str:
        """Another token for its caller."""
        return self._do(calls.token(session)).token

    def end(self, session: str) -> None:
        """End it. Ending it again is no error."""
        self._do(calls.end(session))

    # -- what is said -------------------------------------------------------------------------------------------------

    def say(self, session: str, text: str, *, interrupt: bool = True) -> None:
        """The agent says this; `interrupt`: in place of the answer on its way. Raises Conflict where nobody listens."""
        self._do(calls.say(session, text, interrupt))

    def interrupt(self, session: str) -> None:
        """The agent is silent at once."""
        self._do(calls.interrupt(session))

    def history(self, session: str) -> schemas.History:
        """What was said, turn by turn."""
        return self._do(calls.history(session))

    def transcript(self, session: str) -> schemas.Transcript:
        """What was said, with times."""
        return self._do(calls.transcript(session))

    def transcript_text(self, session: str, form: Literal["text", "vtt"] = "text") -> str:
        """The same for people, or as subtitles (WebVTT)."""
        return self._do(calls.transcript_text(session, form)).decode()

    # -- providers ----------------------------------------------------------------------------------------------------

    def providers(self) -> schemas.Providers:
        """Every provider of every stage."""
        return self._do(calls.providers())

    def switch(self, stage: str, name: str, state: Literal["on", "off"]) -> schemas.Switched:
        """Switch a provider off for all calls, or on again."""
        return self._do(calls.switch(stage, name, state))

    # -- workers ------------------------------------------------------------------------------------------------------

    def workers(self) -> schemas.FleetWorkers:
        """Every worker that is alive."""
        return self._do(calls.workers())

    def drain(self, worker: str) -> schemas.FleetWorker:
        """Have a worker hand its sessions over and end."""
        return self._do(calls.drain(worker))

    # -- how ----------------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Anything else: the JSON that a route answers; None for no body."""
        kind: type[Any] = type(None) if method == "DELETE" else dict
        return self._do(Call(method, path, kind, body, repeatable=method != "POST"))

    def _do(self, call: Call[T]) -> T:
        _refuse_in_loop()
        attempts = self._attempts()
        while True:
            try:
                return read(call.kind, *self._send(call, attempts.left_s), self.url)
            except ApiError as error:
                clock.sleep_s(attempts.pause_s(call, error))

    def _send(self, call: Call[Any], timeout_s: float) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(self.url + call.path, call.body, method=call.method)
        for name, value in self._server.headers_of(call).items():
            request.add_unredirected_header(name, value)
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()
        except (OSError, http.client.IncompleteRead) as error:
            raise silent(self.url, error) from None
        except (ValueError, http.client.HTTPException):
            raise stranger(self.url, 0) from None


def _refuse_in_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "meshag.Client blocks, and would hold up the event loop that runs here: use meshag.AsyncClient, "
        "or asyncio.to_thread"
    )
