"""In place of daily-python: the same classes and methods, with the rooms of the stand-in at DAILY_STANDIN_URL.

Put `tests/vendors/daily_sdk` on PYTHONPATH and `import daily` finds this. What is here has the signatures of the real
package, which a contract test compares; what MeshAG does not use is left out. As in the real one, every callback comes
on a thread of the package's own, completions too, and audio is played in real time.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, List, Optional  # noqa: UP035 - as the real one's
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from meshag.audio import Resampler

_tracks: dict[str, "CustomAudioTrack"] = {}


class AudioData:
    """A piece of what somebody says."""

    def __init__(self, audio_frames: bytes, sample_rate: int) -> None:
        self.audio_frames = audio_frames
        self.sample_rate = sample_rate
        self.bits_per_sample = 16
        self.num_channels = 1
        self.num_audio_frames = len(audio_frames) // 2


class EventHandler:
    """Told what happens, on a thread of the SDK's."""

    def __init__(self) -> None: ...
    def on_app_message(self, message: Any, sender: str) -> None: ...
    def on_call_state_updated(self, state: str) -> None: ...
    def on_error(self, message: str) -> None: ...
    def on_participant_joined(self, participant: Mapping[str, Any]) -> None: ...
    def on_participant_left(self, participant: Mapping[str, Any], reason: str) -> None: ...


class Daily:
    """The process's part of the SDK."""

    @staticmethod
    def init(worker_threads: int = 2, log_level: Any = None) -> None:
        """Once in a process."""


class CustomAudioSource:
    """Where audio is written."""

    def __init__(self, sample_rate: int, channels: int, auto_silence: bool = True) -> None:
        self.sample_rate = sample_rate
        self.channels = channels
        self.listener: Callable[[bytes, int], None] | None = None
        self._free_s = 0.0

    def write_frames(self, frame: bytes, completion: Optional[Callable[[int], None]] = None) -> int:  # noqa: UP045
        """Play: takes as long as it sounds. With a completion it returns at once."""
        frames = len(frame) // 2
        self._free_s = max(self._free_s, time.monotonic()) + frames / self.sample_rate
        wait_s = self._free_s - time.monotonic()
        if self.listener is not None:
            self.listener(frame, self.sample_rate)
        if completion is None:
            time.sleep(wait_s)
            return frames
        timer = threading.Timer(wait_s, completion, [frames])
        timer.daemon = True
        timer.start()
        return 0


class CustomAudioTrack:
    """Carries a source into a room."""

    def __init__(self, audio_source: CustomAudioSource) -> None:
        self.source = audio_source
        self.id = f"track-{id(self)}"
        _tracks[self.id] = self


class _Renderer:
    """Brings what somebody says to the rate that was asked for."""

    def __init__(self, callback: Callable[[str, AudioData, str], None], rate_hz: int, frames: int) -> None:
        self._callback = callback
        self._rate_hz = rate_hz
        self._bytes = 2 * frames
        self._resampler: Resampler | None = None
        self._rest = b""

    def hear(self, who: str, pcm: bytes, rate_hz: int) -> None:
        if self._resampler is None:
            self._resampler = Resampler(rate_hz, self._rate_hz)
        self._rest += self._resampler.push(pcm)
        while len(self._rest) >= self._bytes:
            piece, self._rest = self._rest[: self._bytes], self._rest[self._bytes :]
            self._callback(who, AudioData(piece, self._rate_hz), "microphone")


class CallClient:
    """One participant."""

    def __init__(self, event_handler: Optional[EventHandler] = None) -> None:  # noqa: UP045
        self._handler = event_handler or EventHandler()
        self._loop = asyncio.new_event_loop()
        self._renderers: dict[str, _Renderer] = {}
        self._name = ""
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        threading.Thread(target=self._work, name="daily-standin", daemon=True).start()

    def _work(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._loop.run_forever()
        self._loop.run_until_complete(end())
        self._loop.close()

    def release(self) -> None:
        """The end of it."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def set_user_name(self, user_name: str) -> None:
        """What others see, unless the token says."""
        self._name = user_name

    def join(
        self,
        meeting_url: str,
        meeting_token: Optional[str] = None,  # noqa: UP045
        client_settings: Optional[Mapping[str, Any]] = None,  # noqa: UP045
        completion: Optional[Callable[[Optional[Mapping[str, Any]], Optional[str]], None]] = None,  # noqa: UP045
    ) -> None:
        """Come into the room of that name at the stand-in."""
        joining = self._join(meeting_url, meeting_token or "", client_settings or {}, completion or (lambda *_: None))
        asyncio.run_coroutine_threadsafe(joining, self._loop)

    def leave(self, completion: Optional[Callable[[Optional[str]], None]] = None) -> None:  # noqa: UP045
        """Go."""

        async def leave() -> None:
            if self._socket is not None:
                await self._socket.close()
            if completion is not None:
                completion(None)

        asyncio.run_coroutine_threadsafe(leave(), self._loop)

    def update_subscription_profiles(
        self,
        profile_settings: Mapping[str, Any],
        completion: Optional[Callable[[Optional[str]], None]] = None,  # noqa: UP045
    ) -> None:
        """Everything is received anyway."""

    def update_subscriptions(
        self,
        participant_settings: Optional[Mapping[str, Any]] = None,  # noqa: UP045
        profile_settings: Optional[Mapping[str, Any]] = None,  # noqa: UP045
        completion: Optional[Callable[[Optional[str]], None]] = None,  # noqa: UP045
    ) -> None:
        """Everything is received anyway."""

    def set_audio_renderer(
        self,
        participant_id: str,
        callback: Callable[[str, AudioData, str], None],
        audio_source: str = "microphone",
        sample_rate: int = 16000,
        callback_interval_ms: int = 20,
    ) -> None:
        """Hear somebody, at a rate and in pieces of one's choice."""
        self._renderers[participant_id] = _Renderer(callback, sample_rate, sample_rate * callback_interval_ms // 1000)

    def send_app_message(
        self,
        message: Any,
        participant_id: Optional[str] = None,  # noqa: UP045
        serialize_none: bool = True,
        completion: Optional[Callable[[Optional[str]], None]] = None,  # noqa: UP045
    ) -> None:
        """To one, or to all."""
        text = msgspec.json.encode({"data": message, "to": participant_id}).decode()
        asyncio.run_coroutine_threadsafe(self._send(text), self._loop)

    async def _send(self, what: str | bytes) -> None:
        if self._socket is None or self._socket.closed:
            return
        try:
            await (self._socket.send_str(what) if isinstance(what, str) else self._socket.send_bytes(what))
        except (ConnectionError, aiohttp.ClientError):
            pass

    async def _join(
        self, url: str, token: str, settings: Mapping[str, Any], completion: Callable[[Any, Any], None]
    ) -> None:
        self._handler.on_call_state_updated("joining")
        room = urlsplit(url).path.rpartition("/")[2]
        query = f"token={quote(token)}&name={quote(self._name)}"
        async with aiohttp.ClientSession() as web:
            try:
                self._socket = await web.ws_connect(f"{os.environ['DAILY_STANDIN_URL']}/__room/{room}?{query}")
                first = await self._socket.receive_json()
            except (aiohttp.ClientError, TypeError):
                first = {"type": "refused", "reason": "connection"}
            if first["type"] != "joined":
                self._handler.on_error(first["reason"])
                self._handler.on_call_state_updated("left")
                completion(None, f"Connection(Api(RoomLookup({first['reason']})))")
                return
            self._publish(settings)
            others = {other["id"]: other for other in first["others"]}
            self._handler.on_call_state_updated("joined")
            local = first["me"] | {"info": first["me"]["info"] | {"isLocal": True}}
            completion({"participants": {"local": local, **others}, "meetingSession": {"id": "m-1"}}, None)
            await self._read()
            self._handler.on_call_state_updated("left")

    def _publish(self, settings: Mapping[str, Any]) -> None:
        chosen = settings.get("inputs", {}).get("microphone", {}).get("settings", {}).get("customTrack", {}).get("id")
        if chosen in _tracks:

            def speak(pcm: bytes, rate_hz: int) -> None:
                asyncio.run_coroutine_threadsafe(self._send(rate_hz.to_bytes(4, "little") + pcm), self._loop)

            _tracks[chosen].source.listener = speak

    async def _read(self) -> None:
        assert self._socket is not None
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                who, rate_hz = message.data[:36].decode(), int.from_bytes(message.data[36:40], "little")
                if who in self._renderers:
                    self._renderers[who].hear(who, message.data[40:], rate_hz)
                continue
            event = msgspec.json.decode(message.data)
            if event["type"] == "participant-joined":
                self._handler.on_participant_joined(event["participant"])
            elif event["type"] == "participant-left":
                self._handler.on_participant_left(event["participant"], event["reason"])
            elif event["type"] == "app-message":
                self._handler.on_app_message(event["data"], event["sender"])
            elif event["type"] == "left":
                self._handler.on_error(event["reason"])


__all__: List[str] = [  # noqa: UP006
    "AudioData", "CallClient", "CustomAudioSource", "CustomAudioTrack", "Daily", "EventHandler",
]  # fmt: skip
