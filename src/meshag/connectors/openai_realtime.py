"""OpenAI's realtime transcription socket: audio goes in while the caller speaks, each utterance is committed.

https://developers.openai.com/api/docs/guides/realtime-transcription
"""

import binascii
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from meshag.audio import RATE_HZ, Resampler
from meshag.connectors.contracts import Heard
from meshag.connectors.stt_socket import TEXT_CHARS, SocketStream, received
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderUnavailable,
)

LIVE_MODELS = frozenset({"gpt-live-transcribe", "gpt-realtime-whisper"})
"""They exist on this socket only, and write while the caller speaks; the others begin after the commit."""

SOCKET_RATE_HZ = 24_000
"""The only rate that the socket takes."""

SHORTEST_BYTES = RATE_HZ // 10 * 2
"""0.1 s at 16 kHz: OpenAI refuses less."""

MOST_ITEMS = 16
"""Items whose text so far is kept."""

TRANSCRIPTION = "conversation.item.input_audio_transcription."


class Stated(msgspec.Struct):
    """An `error` object of OpenAI's."""

    type: str | None = None
    code: str | None = None
    event_id: str | None = None


class RealtimeEvent(msgspec.Struct):
    """Any event of the socket."""

    type: str = ""
    item_id: str = ""
    delta: str = ""
    transcript: str = ""
    error: Stated | None = None


_decoder = msgspec.json.Decoder(RealtimeEvent)

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,60}")


def stated(error: Stated | None) -> ConnectorError:
    """What an error inside a stream means. OpenAI's prose is not repeated: it may hold a part of the key."""
    error = error or Stated()
    code = error.code or error.type or ""
    what = "openai: an error" + (f" {code}" if _CODE.fullmatch(code) else "")
    if code == "insufficient_quota":
        return ProviderUnavailable(what, code="provider_quota")
    if code == "rate_limit_exceeded" or error.type in ("requests", "tokens"):
        return ProviderLimited(what)
    if code in ("invalid_api_key", "authentication_error", "permission_error"):
        return ProviderRejected(what, code="provider_unauthorized")
    if error.type == "invalid_request_error" and code != "session_expired":
        return ProviderRejected(what)
    return ProviderUnavailable(what)


@dataclass
class Utterance:
    """One that was committed."""

    event_id: str
    """Of the commit; an error names it."""
    item_id: str = ""
    """OpenAI's name for it, once it said so."""
    text: str | None = None
    """The final, once it is there."""


class RealtimeStream(SocketStream):
    """One session. Finals come in the order of the commits, whatever order OpenAI keeps."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, live: bool) -> None:
        """`live`: the model writes while it is fed."""
        super().__init__("openai", socket)
        self.interims = live
        self._resampler = Resampler(RATE_HZ, SOCKET_RATE_HZ)
        self._fed_bytes = 0
        self._commits = 0
        self._committed: deque[Utterance] = deque()
        self._texts: dict[str, str] = {}

    async def begin(self, session: dict[str, Any]) -> None:
        """Send the session's settings, and wait until they are accepted. Raises ConnectorError."""
        await self._socket.send_str(msgspec.json.encode({"type": "session.update", "session": session}).decode())
        try:
            while (event := _decoder.decode(await received("openai", self._socket))).type != "session.updated":
                if event.type == "error":
                    raise stated(event.error)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise ProviderGarbage("openai: a message that is not of its protocol") from None

    # -- audio --------------------------------------------------------------------------------------------------------

    def send_audio(self, pcm: bytes) -> None:
        self._fed_bytes += len(pcm)
        self._append(self._resampler.push(pcm))

    def _append(self, pcm: bytes) -> None:
        if pcm:
            audio = binascii.b2a_base64(pcm, newline=False).decode()
            self.send(f'{{"type":"input_audio_buffer.append","audio":"{audio}"}}')

    def finish(self) -> None:
        self.flush(end=True)
        if self._fed_bytes < SHORTEST_BYTES:
            self._clear()
            self._committed.append(Utterance("", text=""))
            self._deliver()
            return
        self._append(self._resampler.push(b"", last=True))
        self._fresh()
        self._commits += 1
        utterance = Utterance(f"commit_{self._commits}")
        self._committed.append(utterance)
        self.send(f'{{"type":"input_audio_buffer.commit","event_id":"{utterance.event_id}"}}')

    def reset(self) -> None:
        self.flush(end=True)
        self._clear()

    def _clear(self) -> None:
        if self._fed_bytes:
            self.send('{"type":"input_audio_buffer.clear"}')
        self._fresh()
        named = {utterance.item_id for utterance in self._committed}
        self._texts = {item: text for item, text in self._texts.items() if item in named}

    def _fresh(self) -> None:
        self._fed_bytes = 0
        self._resampler = Resampler(RATE_HZ, SOCKET_RATE_HZ)

    # -- text ---------------------------------------------------------------------------------------------------------

    def take(self, message: str) -> None:
        event = _decoder.decode(message)
        if event.type == TRANSCRIPTION + "delta":
            self._delta(event.item_id, event.delta)
        elif event.type == TRANSCRIPTION + "completed":
            self._complete(event.item_id, event.transcript)
        elif event.type == "input_audio_buffer.committed":
            waiting = next((one for one in self._committed if one.text is None and not one.item_id), None)
            if waiting is not None:
                waiting.item_id = event.item_id
        elif event.type == TRANSCRIPTION + "failed":
            raise stated(event.error)
        elif event.type == "error":
            self._error(event.error or Stated())

    def _delta(self, item_id: str, delta: str) -> None:
        if not delta:
            return
        text = self._texts.get(item_id, "") + delta
        if len(text) > TEXT_CHARS:
            raise ProviderGarbage("openai: an endless transcript")
        self._texts[item_id] = text
        while len(self._texts) > MOST_ITEMS:
            del self._texts[next(iter(self._texts))]
        if not self._committed or self._committed[0].item_id in (item_id, ""):
            self.say(Heard(text.strip(), final=False))

    def _complete(self, item_id: str, transcript: str) -> None:
        self._texts.pop(item_id, None)
        for utterance in self._committed:
            if utterance.item_id == item_id and utterance.text is None:
                utterance.text = transcript.strip()
                break
        self._deliver()

    def _deliver(self) -> None:
        while self._committed and (text := self._committed[0].text) is not None:
            self._committed.popleft()
            self.say(Heard(text, final=True))

    def _error(self, error: Stated) -> None:
        if error.code != "input_audio_buffer_commit_empty":
            raise stated(error)
        for utterance in self._committed:
            if utterance.text is None and error.event_id in (utterance.event_id, None):
                utterance.text = ""
                break
        self._deliver()
