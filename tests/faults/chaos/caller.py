"""A scripted caller: asks numbered questions, one after the other, and writes down all that it hears."""

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from bench import instant
from faults.chaos.history import History
from faults.chaos.providers import PIECE_BYTES, question, read_piece, speech
from meshag import clock
from meshag.audio import FRAME_MS

PATIENCE_S = 25.0
"""A caller who has waited for so long believes that nobody listens."""

JOIN_TRIES = 100
"""A tenth of a second from one to the next."""

_NUMBER = re.compile(r"Answer (\d+) part")


class ChaosCaller:
    """`async with ChaosCaller(…) as caller`, then `converse`."""

    def __init__(self, created: dict[str, Any], history: History, rng: random.Random, *, silence: bool) -> None:
        """`silence`: frames go out also while the caller says nothing, as a real one's do."""
        self.session: str = created["session_id"]
        self.owners: dict[str, str] = {}
        """The worker of each stage, as far as the caller was told."""
        self.events: list[dict[str, Any]] = []
        self.closed = False
        self._url = f"{created['room_url']}?token={created['token']}&rate=16000&out_rate=24000"
        self._history = history
        self._rng = rng
        self._silence = silence
        self._to_say: list[bytes] = []
        self._rest = b""
        self._arrived = asyncio.Event()
        self._http = aiohttp.ClientSession()
        self._socket: aiohttp.ClientWebSocketResponse
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "ChaosCaller":
        for _ in range(JOIN_TRIES):
            try:
                self._socket = await self._http.ws_connect(self._url, max_msg_size=0)
                self.closed = False
                self._reader = asyncio.create_task(self._read())
                await self._wait_for(0, "ready")
                return self
            except (aiohttp.ClientError, ConnectionError):  # Valkey is away, say: come again
                await asyncio.sleep(0.1)
        await self._http.close()
        raise ConnectionError("the session cannot be joined")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._socket.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._http.close()

    async def converse(self, first: int, questions: int, stop: asyncio.Event) -> int:
        """Ask `questions`, numbered from `first`, fewer when `stop` is set. Returns how many were asked."""
        talking = asyncio.create_task(self._talk())
        asked = 0
        try:
            while asked < questions and not (stop.is_set() and asked) and not self.closed:
                act = self._rng.choices(("whole", "typed", "interrupt", "barge"), (5, 2, 2, 2))[0]
                last = asked + 1 >= questions or stop.is_set()
                if act == "barge" and last:
                    act = "whole"
                if not await self._turn(first + asked, act):
                    asked += 1
                    break
                asked += 1
                await asyncio.sleep(self._rng.choice((0, 0, 0.05, 0.2)))
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
        return asked

    async def _turn(self, number: int, act: str) -> bool:
        """Ask, and do as `act` says. False: there was no answer."""
        before = len(self.events)
        self._history.note("asked", session=self.session, number=number, act=act)
        try:
            if act == "typed":
                await self._send({"type": "text", "text": question(number)})
            else:
                await self._ask(number)
            turn = await self._answer_begins(number, before)
            if act == "interrupt":
                await asyncio.sleep(self._rng.uniform(0.02, 1.2))
                await self._send({"type": "interrupt"})
            if act == "barge":
                await asyncio.sleep(self._rng.uniform(0.02, 0.9))
            else:
                await self._wait_for(before, "speech_ended", turn)
                await asyncio.sleep(0.02)  # what is left of the audio
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            self._history.note("unanswered", session=self.session, number=number, error=str(error))
            return False
        return True

    async def _answer_begins(self, number: int, before: int) -> int:
        """The turn in which the question is answered, once something of it is heard."""

        def answers(event: dict[str, Any]) -> bool:
            found = _NUMBER.search(event["text"]) if event["type"] == "reply" else None
            return found is not None and int(found[1]) == number

        turn: int = (await self._wait(before, answers))["turn"]
        await self._wait_for(before, "speech_started", turn)
        return turn

    async def _wait_for(self, after: int, kind: str, turn: int | None = None) -> dict[str, Any]:
        return await self._wait(after, lambda event: event["type"] == kind and turn in (None, event.get("turn")))

    async def _wait(self, after: int, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event from position `after` on that is wanted. Raises TimeoutError, or ConnectionError."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    for event in self.events[after:]:
                        if wanted(event):
                            return event
                    if self.closed:
                        raise ConnectionError("closed")
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            came = ", ".join(f"{event['type']} {event.get('turn', '')}" for event in self.events[after:])
            raise TimeoutError(f"in vain; came: {came}") from None

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_str(msgspec.json.encode(message).decode())

    async def _ask(self, number: int) -> None:
        self._to_say = speech(number, self._rng.randint(2, 40))
        while self._to_say and not self.closed:
            await asyncio.sleep(FRAME_MS / 1000)

    async def _talk(self) -> None:
        """A frame in 20 ms, as a microphone gives it."""
        due_s = clock.monotonic_s()
        with suppress(ConnectionError, aiohttp.ClientError):
            while not self.closed:
                if self._to_say:
                    await self._socket.send_bytes(self._to_say[0])
                    del self._to_say[0]
                elif self._silence:
                    await self._socket.send_bytes(instant.SILENCE)
                due_s = max(due_s + FRAME_MS / 1000, clock.monotonic_s() - 0.2)
                await asyncio.sleep(max(0.0, due_s - clock.monotonic_s()))

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._take(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._note(msgspec.json.decode(message.data))
            self._arrived.set()
        self.closed = True
        self._arrived.set()

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["type"] == "ready":
            self.owners.update(event["owners"])
        elif event["type"] == "owner_changed":
            self.owners[event["stage"]] = event["worker"]
        self._history.note("event", **{"session": self.session, **event})

    def _take(self, pcm: bytes) -> None:
        """Write down what these pieces are, neighbours together."""
        pcm = self._rest + pcm
        whole = len(pcm) // PIECE_BYTES * PIECE_BYTES
        self._rest = pcm[whole:]
        spans: list[list[int]] = []
        for at in range(0, whole, PIECE_BYTES):
            piece = read_piece(pcm[at : at + PIECE_BYTES])
            number, part, place = piece if piece is not None else (-1, 0, 0)
            if spans and spans[-1][:2] == [number, part] and spans[-1][2] + spans[-1][3] == place:
                spans[-1][3] += 1
            else:
                spans.append([number, part, place, 1])
        for number, part, first, count in spans:
            self._history.note("heard", session=self.session, number=number, part=part, first=first, count=count)
