"""The one place that touches daily-python: one connection to one room, its threads kept away from the event loop.

Everything of the SDK that may block runs on a thread of the line's own, one call after another; what the SDK tells on
its threads is handed to the event loop at once. An SDK call that waits for its completion inside of a callback would
wait for ever, so nothing is called from there.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Protocol

from meshag.audio import RATE_HZ
from meshag.errors import ConnectorError, ProviderRejected, ProviderTimeout, ProviderUnavailable

JOIN_S = 20.0
"""The SDK itself tries three addresses, for nineteen seconds."""

LEAVE_S = 3.0
"""A goodbye takes no longer; then the connection is dropped."""

CALL_S = 5.0
"""Any other call."""

REFUSED = ("not-found", "not-allowed", "exp-", "nbf-", "invalid-token", "full", "ejected")
"""In an error of the SDK's: the room is not there, or not open for this token."""

_started = threading.Lock()
_initialised = False


class Listener(Protocol):
    """What the line tells, on the event loop."""

    def joined(self, participant: Mapping[str, Any]) -> None:
        """Somebody else is in the room."""

    def left(self, participant: Mapping[str, Any], reason: str) -> None:
        """They have gone."""

    def heard(self, participant: str, pcm: bytes) -> None:
        """20 ms of somebody's microphone: PCM16 mono 16 kHz."""

    def told(self, message: Any, sender: str) -> None:
        """An app message."""

    def lost(self, why: str) -> None:
        """The room is closed, or the connection broke. Also after `close`."""


class DailyLine:
    """Make it, `open` it, later `close` it."""

    def __init__(self, listener: Listener, rate_hz: int) -> None:
        """`rate_hz`: of what is written."""
        self._listener = listener
        self._rate_hz = rate_hz
        self._loop = asyncio.get_running_loop()
        self._thread = _Thread()
        self._client: Any = None
        self._source: Any = None
        self._track: Any = None
        self._handler: Any = None

    async def open(self, url: str, token: str, name: str, *, deadline_s: float = JOIN_S) -> None:
        """Join. Raises ConnectorError, and is closed then."""
        try:
            await self._run(lambda: self._prepare(name), deadline_s)
            settings = {
                "inputs": {
                    "camera": False,
                    "microphone": {"isEnabled": True, "settings": {"customTrack": {"id": self._track.id}}},
                },
                "publishing": {
                    "camera": {"isPublishing": False},
                    "microphone": {"isPublishing": True, "sendSettings": {"channelConfig": "mono", "bitrate": 64_000}},
                },
            }
            answer = await self._completed(
                lambda done: self._client.join(url, token, client_settings=settings, completion=done), deadline_s
            )
            data, error = answer
            if error:
                raise _failure(str(error))
            for who, participant in (data or {}).get("participants", {}).items():
                if who != "local":
                    self._came(participant)
        except BaseException:
            await self.close()
            raise

    def write(self, pcm: bytes, done: Callable[[], None]) -> None:
        """Speak PCM16 mono. `done` is called on the event loop when it has been played, in real time."""
        self._thread.run(lambda: self._source.write_frames(pcm, completion=lambda count: self._post(done)))

    def tell(self, message: Any) -> None:
        """Send an app message to everybody. What does not arrive is lost."""
        self._thread.run(lambda: self._client.send_app_message(message))

    async def close(self) -> None:
        """Leave and let go of the SDK's threads. Takes `LEAVE_S` at most; may be called again."""
        client, self._client = self._client, None
        try:
            if client is not None:
                async with asyncio.timeout(LEAVE_S):
                    await self._completed(lambda done: client.leave(completion=done), LEAVE_S)
        except (TimeoutError, ConnectorError):
            pass
        finally:
            if client is not None:
                self._thread.run(client.release)
            self._thread.end()
            self._source = self._track = self._handler = None

    # -- on the line's thread -----------------------------------------------------------------------------------------

    def _prepare(self, name: str) -> None:
        sdk = load()
        self._handler = _events(sdk, self)
        self._client = sdk.CallClient(event_handler=self._handler)
        self._client.set_user_name(name)
        self._client.update_subscription_profiles(
            {"base": {"camera": "unsubscribed", "screenVideo": "unsubscribed", "microphone": "subscribed"}}
        )
        self._source = sdk.CustomAudioSource(self._rate_hz, 1, True)
        self._track = sdk.CustomAudioTrack(self._source)

    def _listen_to(self, participant: str) -> None:
        if self._client is not None:
            self._client.update_subscriptions({participant: {"media": {"microphone": "subscribed"}}})
            self._client.set_audio_renderer(
                participant, self._on_audio, audio_source="microphone", sample_rate=RATE_HZ, callback_interval_ms=20
            )

    # -- from the SDK's threads ---------------------------------------------------------------------------------------

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            pass  # the loop has ended before the SDK

    def _on_audio(self, participant: str, audio: Any, source: str) -> None:
        self._post(self._listener.heard, participant, bytes(audio.audio_frames))

    def _came(self, participant: Mapping[str, Any]) -> None:
        """On the event loop."""
        if participant.get("info", {}).get("isLocal"):
            return
        self._thread.run(lambda: self._listen_to(str(participant["id"])))
        self._listener.joined(participant)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _run(self, call: Callable[[], Any], deadline_s: float) -> Any:
        done = self._loop.create_future()

        def work() -> None:
            try:
                found, error = call(), None
            except Exception as problem:  # of the SDK's: arguments it does not take, a library that does not load
                found, error = None, problem
            self._post(_settle, done, found, error)

        self._thread.run(work)
        try:
            async with asyncio.timeout(deadline_s):
                return await done
        except TimeoutError:
            raise ProviderTimeout("daily: the SDK does not answer") from None
        except ConnectorError:
            raise
        except Exception as error:
            raise ProviderRejected(f"daily: {type(error).__name__} in the SDK") from error

    async def _completed(self, start: Callable[[Callable[..., None]], None], deadline_s: float) -> tuple[Any, ...]:
        """Start something and wait for its completion."""
        completed: asyncio.Future[tuple[Any, ...]] = self._loop.create_future()

        def done(*answer: Any) -> None:
            self._post(_settle, completed, answer, None)

        try:
            async with asyncio.timeout(deadline_s):
                await self._run(lambda: start(done), deadline_s)
                return await completed
        except TimeoutError:
            raise ProviderTimeout(f"daily: not within {deadline_s:g} s") from None


class _Thread:
    """Runs calls in their order. A daemon: what hangs in the SDK does not keep the process from ending."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="daily", daemon=True).start()

    def run(self, call: Callable[[], Any]) -> None:
        """Soon."""
        self._calls.put(call)

    def end(self) -> None:
        """After what was asked for before."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                continue  # the line is closing; whoever waits for a call is told by the call itself
            finally:
                del call


def load() -> Any:
    """The SDK, started once in a process. Raises ConnectorError when it is not installed."""
    global _initialised
    try:
        import daily as sdk
    except ImportError as error:
        raise ProviderRejected(
            "daily-python is not installed: pip install 'meshag[daily]'", code="sdk_missing"
        ) from error
    with _started:
        if not _initialised:
            os.environ.setdefault("RUST_LOG", "off")  # it would write to stderr, past our logs
            sdk.Daily.init()
            _initialised = True
    return sdk


def _settle(future: "asyncio.Future[Any]", found: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(found)
    else:
        future.set_exception(error)


def _failure(said: str) -> ConnectorError:
    """What an error of the SDK's means. Its words name states, never what was said nor a token."""
    known = next((word for word in REFUSED if word in said), "")
    if known:
        return ProviderRejected(f"daily: the room lets nobody in ({known.strip('-')})", code="room_closed")
    return ProviderUnavailable("daily: the room cannot be joined")


def _events(sdk: Any, line: DailyLine) -> Any:
    """The SDK's event handler. Each method runs on a thread of the SDK's and does no more than tell the loop."""
    post, listener = line._post, line._listener

    class Events(sdk.EventHandler):  # type: ignore[misc]
        def on_participant_joined(self, participant: Mapping[str, Any]) -> None:
            post(line._came, participant)

        def on_participant_left(self, participant: Mapping[str, Any], reason: str) -> None:
            post(listener.left, participant, reason)

        def on_app_message(self, message: Any, sender: str) -> None:
            post(listener.told, message, sender)

        def on_call_state_updated(self, state: str) -> None:
            if state == "left":
                post(listener.lost, "left")

        def on_error(self, message: str) -> None:
            post(listener.lost, message)

    return Events()
