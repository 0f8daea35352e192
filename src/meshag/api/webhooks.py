"""Session events POSTed to an operator's URL, signed as the Standard Webhooks specification says. See docs/events.md.

One transport worker of all delivers (`elected`). What it has not delivered when it dies comes again to its successor.
Each session's events go one after the other; one that is not taken holds back the later ones of its session alone.
"""

import asyncio
import base64
import hashlib
import hmac
import random
import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from meshag import clock, subjects
from meshag.bus.connection import Bus
from meshag.bus.durable import Durable, Taken
from meshag.bus.streams import EVENT_AGE_S
from meshag.errors import BusError, ConfigError
from meshag.ids import SessionId
from meshag.observe import metrics
from meshag.sessions.events import EVENT_TYPES, Event, decode, message
from meshag.settings import Settings

log = structlog.get_logger("meshag.webhooks")

NAME = "webhooks"
"""The durable consumer."""

ACK_WAIT_S = 10.0
"""What a deliverer that has died had in its hands comes to the next one after so long."""

HELD_S = 3.0
"""A living one says so often what it still has."""

MOST = 1_000
"""Events in its hands."""

AT_ONCE = 8
"""Requests at the same time."""

ANSWER_S = 10.0
"""A receiver that has not answered by then has not taken the event."""

FIRST_WAIT_S = 1.0
MOST_WAIT_S = 300.0
"""From a failure to the next attempt: at first so long, then twice as long every time. Half of it is chance."""

RETRY_AFTER_MOST_S = 3600.0

REFUSED = frozenset({400, 405, 406, 413, 414, 415, 422, 431})
"""The receiver will never take this event: it goes on with the next one."""

GONE = 410
"""The receiver wants no more events at all."""


@dataclass(frozen=True)
class Endpoint:
    """Where events go."""

    url: str
    key: bytes
    """Signs them."""
    types: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> "Endpoint | None":
        """The settings' endpoint; None when there is none. Raises ConfigError, naming the setting."""
        url, secret = settings.webhook_url, settings.webhook_secret.get_secret_value()
        if not url:
            return None
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError("MESHAG_WEBHOOK_URL is no http(s) URL", path="MESHAG_WEBHOOK_URL", fix="https://…")
        if not secret:
            raise ConfigError(
                "MESHAG_WEBHOOK_URL needs MESHAG_WEBHOOK_SECRET: receivers could not tell our events from others'",
                path="MESHAG_WEBHOOK_SECRET",
                fix="whsec_ and the base64 of 24 to 64 random bytes",
            )
        types = frozenset(filter(None, (part.strip() for part in settings.webhook_events.split(","))))
        if unknown := sorted(types - set(EVENT_TYPES)):
            raise ConfigError(
                f"MESHAG_WEBHOOK_EVENTS: there are no events '{unknown[0]}'",
                path="MESHAG_WEBHOOK_EVENTS",
                fix=f"some of {', '.join(EVENT_TYPES)}",
            )
        return cls(url, key_of(secret), types or frozenset(EVENT_TYPES))


def key_of(secret: str) -> bytes:
    """The signing key in a secret: after `whsec_` the base64 of it, else the text itself. Raises ConfigError."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ConfigError(
            "MESHAG_WEBHOOK_SECRET has no base64 after whsec_",
            path="MESHAG_WEBHOOK_SECRET",
            fix="whsec_ and the base64 of 24 to 64 random bytes",
        ) from None


def signed(key: bytes, webhook_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery. `at_s`: Unix time of this attempt."""
    told = b"%s.%d.%s" % (webhook_id.encode(), at_s, body)
    signature = base64.b64encode(hmac.new(key, told, hashlib.sha256).digest()).decode()
    return {
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{signature}",
    }


def wait_s(attempt: int, retry_after: str | None) -> float:
    """How long to wait after attempt number `attempt`, from 1, failed."""
    longest = min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 20))
    return max(longest * random.uniform(0.5, 1), _retry_after_s(retry_after))


def _retry_after_s(value: str | None) -> float:
    if not value:
        return 0.0
    if re.fullmatch(r"\d{1,9}", value.strip()):
        asked = float(value)
    else:
        try:
            asked = parsedate_to_datetime(value).timestamp() - clock.wall_s()
        except (ValueError, TypeError):
            return 0.0
    return min(max(asked, 0.0), RETRY_AFTER_MOST_S)


class _Gone(Exception):  # noqa: N818 - no error
    """The receiver wants no more."""


class Deliveries:
    """Delivers while `run` runs."""

    def __init__(self, bus: Bus, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._durable = Durable(bus, subjects.EVENTS, NAME, ack_wait_s=ACK_WAIT_S, most=MOST, forget_s=EVENT_AGE_S)
        self._lanes: dict[SessionId, deque[int]] = {}
        """By session: the numbers of its events that are in our hands, in order."""
        self._taken: dict[int, Taken] = {}
        self._delivered: OrderedDict[int, None] = OrderedDict()
        """The last ones: a receipt may have been lost."""
        self._started = False
        self._working: set[SessionId] = set()
        self._http: aiohttp.ClientSession
        self._group: asyncio.TaskGroup
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._rest_until_s = 0.0
        self._gone = asyncio.Event()

    async def declare(self) -> None:
        """Everything that happens from now on is to be delivered, by whoever. Raises BusError."""
        await self._durable.declare()

    async def run(self) -> None:
        """Deliver until cancelled; what is not delivered then is given back."""
        self._started = False
        self._gone.clear()
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=ANSWER_S), cookie_jar=aiohttp.DummyCookieJar()
                ) as self._http,
                asyncio.TaskGroup() as self._group,
            ):
                self._group.create_task(self._hold())
                await self._durable.start(self._take)
                await self._gather()
                self._started = True
                for session in tuple(self._lanes):
                    self._work(session)
                await self._gone.wait()
                raise _Gone
        except* _Gone:
            pass
        finally:
            await self._leave()
        await asyncio.Event().wait()  # nothing more is sent

    async def _leave(self) -> None:
        await self._durable.aclose()
        for taken in self._taken.values():
            await self._durable.given_back(taken)
        self._lanes.clear()
        self._taken.clear()
        self._working.clear()

    async def _gather(self) -> None:
        """Wait for what a former deliverer had in its hands: it is older than what comes now, and comes later."""
        deadline_s = clock.monotonic_s() + 2 * ACK_WAIT_S
        while clock.monotonic_s() < deadline_s:
            try:
                if await self._durable.unsettled() <= len(self._taken):
                    return
            except BusError as error:
                log.warning("webhooks_wait", error=str(error))
            await asyncio.sleep(0.2)

    async def _hold(self) -> None:
        """Say what is still in our hands, so that it does not come again."""
        while True:
            await asyncio.sleep(HELD_S)
            for taken in list(self._taken.values()):
                await self._durable.held(taken)

    def _take(self, taken: Taken) -> None:
        event = decode(taken.data)
        if event is None or event.type not in self._endpoint.types or taken.sequence in self._delivered:
            self._soon(self._durable.done(taken))
            return
        known = taken.sequence in self._taken
        self._taken[taken.sequence] = taken  # the newest receipt is the one that counts
        if known:
            return
        lane = self._lanes.setdefault(event.session, deque())
        lane.append(taken.sequence)
        if len(lane) > 1 and lane[-2] > taken.sequence:
            lane = self._lanes[event.session] = deque(sorted(lane))
        if self._started:
            self._work(event.session)

    def _work(self, session: SessionId) -> None:
        if session not in self._working:
            self._working.add(session)
            self._group.create_task(self._deliver_all(session))

    async def _deliver_all(self, session: SessionId) -> None:
        while lane := self._lanes.get(session):
            number = lane[0]
            event = decode(self._taken[number].data)
            assert event is not None
            metrics.WEBHOOKS.labels(await self._deliver(self._taken[number], event)).inc()
            taken = self._taken.pop(number)
            self._lanes[session].remove(number)
            self._delivered[number] = None
            if len(self._delivered) > 10 * MOST:
                self._delivered.popitem(last=False)
            await self._durable.done(taken)
        del self._lanes[session]
        self._working.discard(session)

    async def _deliver(self, taken: Taken, event: Event) -> str:
        """Until it is taken, refused, or so old that it is no longer kept."""
        webhook_id = _webhook_id(taken)
        body = msgspec.json.encode(message(taken.sequence, event))
        attempt = 0
        while True:
            if (rest_s := self._rest_until_s - clock.monotonic_s()) > 0:
                await asyncio.sleep(rest_s)
                continue
            async with self._at_once:
                attempt += 1
                status, retry_after = await self._post(webhook_id, body)
            if 200 <= status < 300:
                return "delivered"
            metrics.WEBHOOK_FAILURES.labels(str(status) if status else "unreachable").inc()
            told = {"webhook_id": webhook_id, "status": status, "attempt": attempt}
            if status in REFUSED:
                log.error("webhook_refused", **told)
                return "refused"
            if status == GONE:
                log.error("webhooks_stopped", **told, fix="the receiver wants no more: restart the transport services")
                self._gone.set()
            if clock.wall_ns() - event.at_ns > EVENT_AGE_S * 1e9:
                log.error("webhook_given_up", **told)
                return "expired"
            pause_s = wait_s(attempt, retry_after)
            log.warning("webhook_failed", **told, next_s=round(pause_s, 1))
            if retry_after and status in (429, 503):  # it is not this event that is too much
                self._rest_until_s = clock.monotonic_s() + pause_s
            await asyncio.sleep(pause_s)

    async def _post(self, webhook_id: str, body: bytes) -> tuple[int, str | None]:
        """The answer's status, 0 for none, and its Retry-After."""
        headers = signed(self._endpoint.key, webhook_id, clock.wall_ns() // 1_000_000_000, body)
        try:
            async with self._http.post(self._endpoint.url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status, answer.headers.get("Retry-After")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return 0, None

    def _soon(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        _receipts.add(task)
        task.add_done_callback(_receipts.discard)


def _webhook_id(taken: Taken) -> str:
    """The same in every attempt, by whoever: receivers tell a repetition by it."""
    return "evt_" + re.sub(r"[^A-Za-z0-9]+", "_", taken.message_id.removeprefix("event/") or str(taken.sequence))


_receipts: set[asyncio.Task[None]] = set()
"""Kept until they are done: the event loop alone would forget them."""
