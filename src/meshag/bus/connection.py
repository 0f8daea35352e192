"""The connection to NATS. The only place that knows the client library's ways.

Reconnects for ever and is never deaf afterwards: streams are declared again, unacknowledged turn messages are sent
again, and everybody who listens is told to heal from the journal (`on_reconnect`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from meshag import clock
from meshag.bus.streams import declare, purge
from meshag.errors import BusError, OverloadError
from meshag.observe import metrics

log = structlog.get_logger("meshag.bus")

Deliver = Callable[[bytes], None]
"""Called with each message's payload, in order, inside the reader: it must not block."""

Answer = Callable[[bytes], Awaitable[bytes]]
"""Answers a request."""


class _Inbox(asyncio.Queue[Any]):
    """Stands in for a subscription's queue and hands each message over at once.

    The client library moves every message through a queue and a task per subscription, which is a third of what a hop
    costs. Guarded by tests/integration/test_bus.py, and the library is pinned to one minor version.
    """

    def __init__(self, deliver: Callable[[Msg], None]) -> None:
        super().__init__()
        self._deliver = deliver

    def put_nowait(self, item: Msg) -> None:
        try:
            self._deliver(item)
        except Exception as error:  # it would end the library's reader, and this process would be deaf
            log.error("message_not_taken", error=type(error).__name__, exc_info=error)


class Subscription:
    """A live subscription. `close()` is idempotent."""

    def __init__(self, bus: "Bus", subject: str, queue: str, deliver: Callable[[Msg], None]) -> None:
        self._bus = bus
        self._subject = subject
        self._queue = queue
        self._deliver = deliver
        self._subscription: NatsSubscription | None = None

    async def _open(self, client: Client) -> None:
        subscription = await client.subscribe(self._subject, queue=self._queue, pending_bytes_limit=0)
        queued, subscription._pending_queue = subscription._pending_queue, _Inbox(self._deliver)
        while not queued.empty():  # came before this line, when the library was busy
            subscription._pending_queue.put_nowait(queued.get_nowait())
        self._subscription = subscription
        self._bus._subscriptions.add(self)

    async def close(self) -> None:
        """Hear nothing more."""
        self._bus._subscriptions.discard(self)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except (nats.errors.Error, OSError):
                pass  # the connection is gone, and the subscription with it


def _is_address(url: str) -> bool:
    """Whether a part of NATS_URL names a server."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        return parts.scheme in ("nats", "tls", "ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Bus:
    """One process's connection. Make it with `Bus.connect`."""

    def __init__(self, url: str, name: str, *, replicas: int = 1) -> None:
        self._urls = [part.strip() for part in url.split(",") if part.strip()]
        self._name = name
        self._replicas = replicas
        self._client = Client()
        self._closing = False
        self._reconnected: list[Callable[[], None]] = []
        self._connected_once = False
        self._answering: set[asyncio.Task[None]] = set()
        self._subscriptions: set[Subscription] = set()
        self._settled = False
        self._reviving: asyncio.Task[None] | None = None
        self.refusal: str | None = None
        """Why JetStream refuses messages at the moment; None while it takes them."""
        self.lost_at_ns: int | None = None
        """Monotonic time at which the connection was last lost."""

    @classmethod
    async def connect(cls, url: str, *, name: str, timeout_ms: int = 5000, replicas: int = 1) -> "Bus":
        """Connect and declare the streams. Raises BusError when no server answers in time, naming NATS_URL."""
        bus = cls(url, name, replicas=replicas)
        if not bus._urls or not all(map(_is_address, bus._urls)):  # its text may hold a password
            raise BusError("NATS_URL is no address like nats://127.0.0.1:4222", retryable=False)
        deadline = clock.monotonic_s() + timeout_ms / 1000
        while True:
            try:
                async with asyncio.timeout(max(0.1, deadline - clock.monotonic_s())):  # the library tries for ever
                    await bus._open()
                return bus
            except (OSError, nats.errors.Error, TimeoutError) as error:
                problem = bus._client.last_error or error
                with suppress(AssertionError):  # the library's, where it did not even begin
                    await bus._client.close()
                if clock.monotonic_s() > deadline:
                    reason = str(problem) or type(problem).__name__
                    if "authorization violation" in reason.lower():  # the library has no class for it here
                        raise BusError(
                            f"NATS at {bus.address} refuses us. Set NATS_URL with a name and password that it takes"
                        ) from error
                    raise BusError(
                        f"NATS does not answer at {bus.address}: {reason}. Start nats-server with JetStream, "
                        "or set NATS_URL"
                    ) from error
                bus._client = Client()
                await asyncio.sleep(0.1)

    async def _open(self) -> None:
        await self._client.connect(
            servers=self._urls,
            name=self._name,
            connect_timeout=2,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,  # type: ignore[arg-type]  # a fraction works, and 2 s would be deaf
            ping_interval=1,
            max_outstanding_pings=2,
            pending_size=16 * 1024 * 1024,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_close,
        )
        await declare(self._client, self._replicas)
        self._connected_once = self._settled = True

    @property
    def address(self) -> str:
        """The servers, without credentials."""
        return ", ".join(url.rsplit("@", 1)[-1] for url in self._urls)

    @property
    def connected(self) -> bool:
        """Whether messages go through right now."""
        return bool(self._client.is_connected)

    @property
    def settled(self) -> bool:
        """Whether a message goes through right now and arrives after those before it.

        False from the loss of the connection until streams are declared again and `on_reconnect` is being called.
        """
        return self._settled and self.connected

    async def close(self) -> None:
        """Send what is pending, then disconnect. Idempotent."""
        self._closing = True
        for task in (*self._answering, *([self._reviving] if self._reviving else [])):
            task.cancel()
        if not self._client.is_closed:
            try:
                if self._client.is_connected:
                    await self._flush(1)
            except (nats.errors.Error, OSError, TimeoutError):
                pass  # closing anyway
            await self._client.close()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after every reconnect, streams declared. Returns what forgets it again."""
        self._reconnected.append(callback)

        def forget() -> None:
            if callback in self._reconnected:
                self._reconnected.remove(callback)

        return forget

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send at most once. While disconnected the message waits in a bounded buffer. Raises BusError when full."""
        try:
            await self._client.publish(subject, data, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"NATS takes no more messages: {type(error).__name__}") from error

    async def subscribe(self, subject: str, deliver: Deliver) -> Subscription:
        """Hear `subject`. The server knows of it when this returns."""
        return await self._subscribe(subject, lambda message: deliver(message.data))

    async def _subscribe(self, subject: str, deliver: Callable[[Msg], None], queue: str = "") -> Subscription:
        subscription = Subscription(self, subject, queue, deliver)
        try:
            await subscription._open(self._client)
            if self._client.is_connected:
                await self._flush(5)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await subscription.close()
            raise BusError(f"cannot subscribe to NATS: {type(error).__name__}") from error
        return subscription

    async def subscribe_with_headers(
        self, subject: str, deliver: Callable[[bytes, dict[str, str]], None]
    ) -> Subscription:
        """Hear `subject` with the messages' headers; a status answer carries `Status`."""
        return await self._subscribe(subject, lambda message: deliver(message.data, message.headers or {}))

    async def serve(self, subject: str, answer: Answer, *, queue: str = "") -> Subscription:
        """Answer requests to `subject`, each in its own task; with `queue`, one of the group answers each."""

        async def respond(message: Msg) -> None:
            try:
                await message.respond(await answer(message.data))
            except Exception as error:  # the asker times out and asks another
                log.warning("answer_lost", subject=subject, error=type(error).__name__)

        def deliver(message: Msg) -> None:
            task = asyncio.get_running_loop().create_task(respond(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        return await self._subscribe(subject, deliver, queue)

    async def request(
        self, subject: str, data: bytes, *, timeout_ms: int, headers: dict[str, str] | None = None
    ) -> bytes:
        """Ask and wait. Raises OverloadError when nobody listens, BusError when no answer comes in time."""
        try:
            message = await self._client.request(subject, data, timeout=timeout_ms / 1000, headers=headers)
        except nats.errors.NoRespondersError:
            raise OverloadError(f"nobody answers {subject}") from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise BusError(f"no answer to {subject}: {type(error).__name__}") from error
        return message.data

    def new_inbox(self) -> str:
        """A subject that only this process hears."""
        return self._client.new_inbox()

    async def redeclare(self) -> None:
        """Make the streams that are missing."""
        await declare(self._client, self._replicas)

    async def purge(self, subject: str) -> None:
        """Delete what the journal holds for one subject. Raises BusError."""
        await purge(self._client, subject)

    async def round_trip_ms(self) -> float:
        """Time to the server and back, ms. Raises BusError when it does not answer within a second."""
        start = clock.monotonic_ns()
        try:
            await self._flush(1)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise BusError(f"NATS does not answer: {type(error).__name__}") from error
        return (clock.monotonic_ns() - start) / clock.MS

    async def _flush(self, timeout_s: float) -> None:
        """Return when the server has dealt with everything sent so far.

        Not the library's own: its ping overtakes what waits to be written, so that it answers for a subscription that
        the server does not know yet; and after a timeout, the late answer ends its reader.
        """
        await self._client._flush_pending(force_flush=True)
        pong = asyncio.get_running_loop().create_future()
        await self._client._send_ping(pong)
        await asyncio.wait([pong], timeout=timeout_s)
        if not pong.done():
            raise nats.errors.FlushTimeoutError

    async def _on_error(self, error: Exception) -> None:
        if self._connected_once and not self._closing and not isinstance(error, ConnectionRefusedError):
            log.warning("bus_error", error=type(error).__name__)

    async def _on_disconnect(self) -> None:
        if self._connected_once and not self._closing:
            self._settled = False
            self.lost_at_ns = clock.monotonic_ns()
            log.warning("bus_lost", server=self.address)

    async def _on_reconnect(self) -> None:
        try:
            await self.redeclare()
        except BusError as error:
            log.error("streams_missing", error=str(error))
        metrics.BUS_RECONNECTS.inc()
        log.info("bus_back", server=self.address)
        self._settled = True
        for callback in tuple(self._reconnected):
            try:
                callback()
            except Exception as error:  # the others heal all the same
                log.error("heal_failed", error=type(error).__name__, exc_info=error)

    async def _on_close(self) -> None:
        """The library gives up on errors that a server may recover from: begin anew with what was subscribed."""
        if self._connected_once and not self._closing and (self._reviving is None or self._reviving.done()):
            await self._on_disconnect()
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        while not self._closing:
            self._client = Client()
            try:
                await self._open()
                for subscription in tuple(self._subscriptions):
                    await subscription._open(self._client)
                await self._on_reconnect()
                return
            except (OSError, nats.errors.Error, TimeoutError, BusError) as error:
                log.warning("bus_lost", server=self.address, error=type(error).__name__)
                await self._client.close()
                await asyncio.sleep(0.25)
