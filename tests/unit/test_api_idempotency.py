"""A request that is sent again while the first is still being made, and after it has failed."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from meshag.api import idempotency
from meshag.api.idempotency import Made, once
from meshag.api.service import WORKER
from meshag.errors import OverloadError
from meshag.sessions.once import Attempt

pytestmark = pytest.mark.unit


class Kept:
    """What `Once` keeps in Valkey, in a dict."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}

    async def begin(self, place: str, request: str) -> tuple[Attempt, bool]:
        mine = place not in self.attempts
        return self.attempts.setdefault(place, Attempt(request, "nonce")), mine

    async def settle(self, place: str, mine: Attempt, answer: str) -> None:
        del self.attempts[place]
        if answer:
            self.attempts[place] = Attempt(mine.request, mine.nonce, answer)


class Maker:
    """Makes a session when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.made = 0
        self.fails = False

    async def make(self) -> Made:
        await self.let.wait()
        if self.fails:
            raise OverloadError("full")
        self.made += 1
        return {"session_id": f"s{self.made}", "token": "first"}

    async def again(self, made: Made) -> Made:
        return made | {"token": "fresh"}


@pytest.fixture
def kept() -> Kept:
    return Kept()


def sent(kept: Kept, body: bytes = b"{}") -> web.Request:
    app = web.Application()
    app[WORKER] = cast(Any, SimpleNamespace(store=SimpleNamespace(once=kept)))
    request = make_mocked_request("POST", "/sessions", {"Idempotency-Key": "k"}, app=app)
    request._read_bytes = body
    return request


def body(answer: web.Response) -> Any:
    return json.loads(cast(str, answer.text))


async def test_the_second_waits_and_gets_what_the_first_has_made(kept: Kept) -> None:
    maker = Maker()
    both = [asyncio.create_task(once(sent(kept), maker.make, maker.again)) for _ in range(2)]
    await asyncio.sleep(0)
    maker.let.set()
    first, second = await asyncio.gather(*both)
    assert (first.status, body(first)) == (201, {"session_id": "s1", "token": "first"})
    assert (second.status, body(second)) == (201, {"session_id": "s1", "token": "fresh"})
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.headers["Location"] == second.headers["Location"] == "/sessions/s1"
    assert maker.made == 1


async def test_the_second_is_told_to_come_again_when_the_first_takes_long(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_S", 0.0)
    maker = Maker()
    first = asyncio.create_task(once(sent(kept), maker.make, maker.again))
    await asyncio.sleep(0)
    second = await once(sent(kept), maker.make, maker.again)
    assert (second.status, body(second)["code"]) == (409, "in_progress")
    assert second.headers["Retry-After"] == "1"
    other = await once(sent(kept, b'{"other": 1}'), maker.make, maker.again)
    assert (other.status, body(other)["code"]) == (422, "idempotency_key_reused")
    maker.let.set()
    assert (await first).status == 201
    assert (await once(sent(kept), maker.make, maker.again)).headers["Idempotent-Replayed"] == "true"
    assert maker.made == 1


async def test_what_failed_may_be_sent_again(kept: Kept) -> None:
    maker = Maker()
    maker.let.set()
    maker.fails = True
    with pytest.raises(OverloadError):
        await once(sent(kept), maker.make, maker.again)
    maker.fails = False
    answer = await once(sent(kept), maker.make, maker.again)
    assert answer.status == 201
    assert "Idempotent-Replayed" not in answer.headers
