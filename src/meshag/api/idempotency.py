"""`Idempotency-Key`: a creation that is sent again answers as it did the first time, and makes nothing."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from meshag import clock
from meshag.api.access import key_of
from meshag.api.problems import problem
from meshag.api.service import WORKER
from meshag.errors import ConfigError, StoreError
from meshag.sessions.once import digest, place_of

log = structlog.get_logger("meshag.api")

HEADER = "Idempotency-Key"

REPLAYED = "Idempotent-Replayed"
"""`true` in an answer that had been given before."""

WAIT_S = 10.0
"""A second request waits so long for the answer to the first; then it is told to come again."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Made = dict[str, Any]
"""What was made, as the body of a 201."""


async def once(
    request: web.Request, make: Callable[[], Awaitable[Made]], again: Callable[[Made], Awaitable[Made]]
) -> web.Response:
    """201 with what `make` makes; under an Idempotency-Key that is known, with what it made then, through `again`.

    `again` replaces what is too old to be of use, such as a token. Only what was made is kept: after an error the same
    request may be sent again. Raises ConfigError for a key that is none.
    """
    name = request.headers.get(HEADER)
    if name is None:
        return _created(await make())
    if not _KEY.fullmatch(name):
        raise ConfigError(
            f"{HEADER} is not 1 to 255 printable ASCII characters",
            path=HEADER,
            fix="for example a random UUID",
            code="idempotency_key_invalid",
        )
    kept = request.app[WORKER].store.once
    place = place_of(key_of(request), name)
    asked = digest(request.method.encode(), request.path.encode(), await request.read())
    deadline_s = clock.monotonic_s() + WAIT_S
    while True:
        attempt, mine = await kept.begin(place, asked)
        if mine:
            break
        if attempt.request != asked:
            return problem(
                422,
                "idempotency_key_reused",
                f"this {HEADER} came with another request before: use a new one",
                path=HEADER,
                fix="a new key for each session",
            )
        if attempt.answer:
            made = await again(msgspec.json.decode(attempt.answer))
            return _created(made, {REPLAYED: "true"})
        if clock.monotonic_s() > deadline_s:
            return problem(
                409, "in_progress", "the first request with this key is still being done", headers={"Retry-After": "1"}
            )
        await asyncio.sleep(0.1)
    answer = ""
    try:
        made = await make()
        answer = msgspec.json.encode(made).decode()
    finally:
        try:
            await kept.settle(place, attempt, answer)
        except StoreError as error:  # it was made: that is said, although it would not be a second time
            log.warning("answer_not_kept", error=str(error))
    return _created(made)


def _created(made: Made, headers: dict[str, str] | None = None) -> web.Response:
    location = {"Location": f"/sessions/{made['session_id']}"}
    return web.json_response(made, status=201, headers={**location, **(headers or {})})
