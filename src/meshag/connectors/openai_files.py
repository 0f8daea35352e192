"""OpenAI's transcription of files: one request for each utterance, and its two kinds of answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import aiohttp
import msgspec

from meshag.connectors.contracts import Heard, SttStream
from meshag.connectors.http import LINE_BYTES, server_events
from meshag.connectors.openai_realtime import SHORTEST_BYTES, Stated, stated
from meshag.connectors.stt_socket import TEXT_CHARS, Outbox
from meshag.errors import ConnectorError, ProviderGarbage, ProviderRejected, ProviderUnavailable

LONGEST_BYTES = 24 * 1024 * 1024
"""An utterance is shorter than this (13 minutes): OpenAI takes files of up to 25 MB."""


class Transcription(msgspec.Struct):
    """json and verbose_json."""

    text: str


class TranscriptEvent(msgspec.Struct):
    """An event of the stream."""

    type: str = ""
    delta: str = ""
    text: str = ""
    error: Stated | None = None


_transcription = msgspec.json.Decoder(Transcription)
_event = msgspec.json.Decoder(TranscriptEvent)

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


async def whole(answer: aiohttp.ClientResponse, response_format: str) -> str:
    """The transcript in an answer of one piece. Raises ProviderGarbage."""
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > LINE_BYTES:
            raise ProviderGarbage("openai: an endless answer")
    try:
        if response_format != "text":
            return _bounded(_transcription.decode(body).text)
        if not body or not answer.headers.get("Content-Type", "").startswith("text/plain"):
            raise ProviderGarbage("openai: no transcript")
        return _bounded(body.decode())
    except _UNREADABLE:
        raise ProviderGarbage("openai: an answer that is not of its protocol") from None


async def written(answer: aiohttp.ClientResponse) -> AsyncGenerator[Heard, None]:
    """The transcript as it is written: interims, then the final. Raises ConnectorError."""
    text = ""
    async with aclosing(server_events("openai", answer)) as events:
        async for data in events:
            if data == b"[DONE]":
                break
            try:
                event = _event.decode(data)
            except _UNREADABLE:
                raise ProviderGarbage("openai: an event that is not of its protocol") from None
            if event.error is not None or event.type == "error":
                raise stated(event.error)
            if event.type == "transcript.text.delta" and event.delta:
                text += event.delta
                yield Heard(_bounded(text), final=False)
            elif event.type == "transcript.text.done":
                yield Heard(_bounded(event.text), final=True)
                return
    raise ProviderUnavailable("openai: the transcript broke off")


def _bounded(text: str) -> str:
    if len(text) > TEXT_CHARS:
        raise ProviderGarbage("openai: an endless transcript")
    return text.strip()


class FileStream(SttStream):
    """One session. Requests may overlap; what they hear comes out in the order of the utterances."""

    def __init__(self, transcribe: Callable[[bytes], AsyncGenerator[Heard, None]]) -> None:
        """`transcribe`: what is said in PCM16 mono 16 kHz: interims, if there are any, and the final."""
        self._transcribe = transcribe
        self._audio = bytearray()
        self._utterances: asyncio.Queue[Outbox | None] = asyncio.Queue()
        self._working: set[asyncio.Task[None]] = set()
        self._closed = False

    def feed(self, pcm: bytes) -> None:
        if len(self._audio) <= LONGEST_BYTES:
            self._audio += pcm

    def finish(self) -> None:
        pcm, self._audio = bytes(self._audio[: len(self._audio) & ~1]), bytearray()
        if self._closed:
            return
        outbox = Outbox()
        self._utterances.put_nowait(outbox)
        if len(pcm) < SHORTEST_BYTES:
            outbox.put(Heard("", final=True))
            outbox.end()
        elif len(pcm) > LONGEST_BYTES:
            outbox.end(ProviderRejected("openai: an utterance of more than 24 MB"))
        else:
            task = asyncio.create_task(self._hear(pcm, outbox), name="openai-stt")
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    def reset(self) -> None:
        self._audio.clear()

    async def heard(self) -> AsyncIterator[Heard]:
        while (outbox := await self._utterances.get()) is not None:
            async for heard in outbox:
                if self._closed:
                    return
                yield heard

    async def aclose(self) -> None:
        self._closed = True
        self._utterances.put_nowait(None)
        for task in tuple(self._working):
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _hear(self, pcm: bytes, outbox: Outbox) -> None:
        try:
            async with aclosing(self._transcribe(pcm)) as found:
                async for heard in found:
                    outbox.put(heard)
            outbox.end()
        except ConnectorError as error:
            outbox.end(error)
        except Exception as error:  # whoever iterates must learn that nothing more will come
            outbox.end(ConnectorError(f"openai: {type(error).__name__}"))
        finally:
            outbox.end()
