"""What a provider that has failed must show before callers are sent to it again.

One that failed before anything came is asked for its smallest piece of work, `Connector.probe`, and has no longer for
it than a caller would have waited. One that broke off midway would pass that and break off again: it is asked for a
real answer, and that has to come from its beginning to its end under the deadlines and at the pace of a caller's turn.
"""

import asyncio
from contextlib import aclosing
from dataclasses import fields, replace

import numpy as np

from meshag.audio import RATE_HZ, Framer
from meshag.connectors.contracts import (
    CONNECT_MS,
    Connector,
    Deadlines,
    LlmConnector,
    LlmRequest,
    Message,
    Options,
    ReplyDone,
    SttConnector,
    TextDelta,
    TtsConnector,
)
from meshag.connectors.failover import LEAST_CHARS_PER_S, LEAST_MS_PER_S, connected, watched, weight
from meshag.errors import ProviderGarbage, ProviderTimeout

QUESTION = "Count from one to forty in words, and say nothing else."
"""Some eighty tokens of answer: several seconds at the pace of speech."""

ENOUGH_CHARS = 1_000
"""A model that has come so far has shown that it keeps on, and need not be paid for more."""

TEXT = "One, two, three, four, five, six, seven. Eight, nine, ten, eleven, twelve."
"""For a voice: five seconds."""

HUM_MS = 2_000
"""For a recogniser."""

TOTAL_MS = 20_000
"""No trial takes longer."""


def patient(own: Deadlines, of_call: Deadlines | None) -> Deadlines:
    """Each deadline of a provider as it is usual, or as the call had it that failed, whichever is longer.

    A session that cannot wait has no provider closed to the others, and one that knows its model to be slow can get it
    back.
    """
    longer = {one.name: max(getattr(own, one.name), getattr(of_call or own, one.name)) for one in fields(Deadlines)}
    return Deadlines(**longer)


async def begins(connector: Connector, options: Options, deadlines: Deadlines, provider: str) -> None:
    """The smallest piece of work, in the time that a call has to begin. Raises ConnectorError."""
    CONNECT_MS.set(deadlines.connect_ms)
    limit_ms = deadlines.connect_ms + deadlines.first_ms
    try:
        async with asyncio.timeout(limit_ms / 1000):
            await connector.probe(options)
    except TimeoutError:
        raise ProviderTimeout(f"{provider}: no answer to a probe within {limit_ms} ms") from None


async def keeps_on(connector: Connector, options: Options, deadlines: Deadlines, provider: str) -> None:
    """A real answer, to its end. Raises ConnectorError."""
    deadlines = replace(deadlines, total_ms=min(deadlines.total_ms, TOTAL_MS))
    if isinstance(connector, LlmConnector):
        await _answers(connector, options, deadlines, provider)
    elif isinstance(connector, TtsConnector):
        await _speaks(connector, options, deadlines, provider)
    elif isinstance(connector, SttConnector):
        await _hears(connector, options, deadlines, provider)
    else:
        await begins(connector, options, deadlines, provider)


async def _answers(connector: LlmConnector, options: Options, deadlines: Deadlines, provider: str) -> None:
    request, chars = LlmRequest("", [Message("user", QUESTION)], options), 0
    answer = watched(connector.reply(request), deadlines, provider, weigh=weight, least_per_s=LEAST_CHARS_PER_S)
    async with aclosing(answer):
        async for event in answer:
            if isinstance(event, TextDelta):
                chars += len(event.text.strip())
            if chars and (isinstance(event, ReplyDone) or chars > ENOUGH_CHARS):
                return
    raise ProviderGarbage(f"{provider}: an empty answer", code="provider_empty")


async def _speaks(connector: TtsConnector, options: Options, deadlines: Deadlines, provider: str) -> None:
    voice = await connected(connector.open(options), deadlines, provider)
    try:
        ms = 0.0
        audio = watched(
            voice.speak(TEXT),
            deadlines,
            provider,
            weigh=lambda pcm: len(pcm) * 500 / voice.rate_hz,
            least_per_s=LEAST_MS_PER_S,
        )
        async with aclosing(audio):
            async for pcm in audio:
                ms += len(pcm) * 500 / voice.rate_hz
        if not ms:
            raise ProviderGarbage(f"{provider}: no audio", code="provider_empty")
    finally:
        await voice.aclose()


async def _hears(connector: SttConnector, options: Options, deadlines: Deadlines, provider: str) -> None:
    stream = await connected(connector.open(options), deadlines, provider)
    try:
        for frame in Framer().push(hum()):
            stream.feed(frame)
        stream.finish()
        async with asyncio.timeout(deadlines.first_ms / 1000):
            async for heard in stream.heard():
                if heard.final:
                    return
    except TimeoutError:
        raise ProviderTimeout(f"{provider}: no final transcript within {deadlines.first_ms} ms") from None
    finally:
        await stream.aclose()
    raise ProviderGarbage(f"{provider}: no transcript", code="provider_empty")


def hum() -> bytes:
    """PCM16 mono 16 kHz: somebody hums, syllable after syllable. There is no word in it."""
    at_s = np.arange(RATE_HZ * HUM_MS // 1000) / RATE_HZ
    voice = sum(np.sin(2 * np.pi * 120 * harmonic * at_s) / harmonic for harmonic in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 4 * at_s), 0, None)
    return bytes((voice * syllables * 3_000).astype("<i2").tobytes())
