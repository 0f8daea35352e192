"""Providers that say again what was recorded of them, when it was said: what all of them share.

A recording holds what the stages made of their providers, not the providers' own words. Each is taken back from there:
what was recognised from the transcripts (`recorded_stt`), what the model wrote from the chunks (`recorded_llm`), the
voice's audio from the speech (`recorded_tts`).
"""

import asyncio
from typing import ClassVar, NoReturn

from pydantic import ConfigDict

from meshag import clock
from meshag.connectors.contracts import Availability, Connector, Deadlines, Options
from meshag.recording.tape import Tape

NOT_RECORDED = "(not recorded)"
"""Heard where the stage finds an utterance that it did not find when it was recorded."""

EVER_MS = 3_600_000

GOES_ON_NS = 300 * clock.MS
"""So long after an interruption a provider that nobody stopped says more."""


class AnyOptions(Options):
    """Whatever was asked of the provider."""

    model_config = ConfigDict(extra="allow", frozen=True)


async def never() -> NoReturn:
    """The provider says nothing more."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


class Recorded(Connector):
    """What the three have in common. Whatever it does, it is in time: its deadlines are not replayed."""

    options: ClassVar[type[Options]] = AnyOptions
    shared = False

    def __init__(self, name: str, tape: Tape, notice_ms: int) -> None:
        self.name = name  # type: ignore[misc]
        self._tape = tape
        self.deadlines = Deadlines(EVER_MS, EVER_MS, EVER_MS, EVER_MS, notice_ms)  # type: ignore[misc]

    def availability(self) -> Availability:
        return Availability(True, "recorded")
