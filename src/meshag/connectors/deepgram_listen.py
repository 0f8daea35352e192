"""Deepgram's two live protocols: nova on /v1/listen, Flux on /v2/listen.

Both place what they heard on the clock of the audio that they were sent. So the audio is cut into parts, one for each
`finish` and `reset`, and a part is done when it was answered, or when Deepgram has heard on past its end: it does not
always answer (https://developers.deepgram.com/docs/finalize, https://developers.deepgram.com/docs/flux/force-end-turn).
"""

import re
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from meshag.audio import RATE_HZ
from meshag.connectors.contracts import Heard
from meshag.connectors.stt_socket import BATCH_BYTES, TEXT_CHARS, SocketStream
from meshag.errors import ConnectorError, ProviderLimited, ProviderRejected, ProviderUnavailable

BYTES_PER_S = RATE_HZ * 2

SAME_S = 0.1
"""Two places in the audio that lie no further apart are the same place."""

QUIET_PEAK, QUIET_SHARE = 100, 0.04
"""A batch whose samples stay below this (of 32768), or below this share of the part's loudest, holds no word."""

KEEPALIVE_S = 4.0
"""Deepgram hangs up after ten seconds without a message."""

STALLED_S = 0.5
"""A caller whose audio stops in mid-turn for so long (muted, or cut off) is silent: Deepgram is told so."""

SILENCE = bytes(BYTES_PER_S // 2)
"""Half a second."""

MOST_NUDGES = 8
"""After so many half seconds of silence without an answer it is left to the stage's deadline."""

MOST_PIECES = 100
"""Texts kept for one part; a part that Deepgram's own ends of turns cut up may have no end at all."""


@dataclass
class Part:
    """What was fed between two calls of `finish` or `reset`."""

    pieces: list[str] = field(default_factory=list)
    """The settled texts of it."""
    turn: int = 0
    """Where in `pieces` the present turn begins, when Deepgram finds the turns."""
    open: str = ""
    """What may still change."""
    end_s: float | None = None
    """Where in the audio it ends; None: it is being fed."""
    empty: bool = False
    """Nothing was fed."""
    dropped: bool = False
    """It ended with `reset`."""
    fed_s: float = 0.0
    """The same without the silence that was sent after it."""
    spoken_s: float = 0.0
    """Where the last sound in it ends."""
    peak: int = QUIET_PEAK
    """Its loudest sample."""
    asked_s: float = 0.0
    """How far Deepgram had heard when it was last asked for the end."""
    answered: bool = False
    forced: bool = False
    """Flux ended a turn because it was asked to."""
    nudges: int = 0

    def add(self, text: str) -> None:
        if text:
            self.pieces.append(text)
        if len(self.pieces) > MOST_PIECES:
            self.turn = max(0, self.turn - 1)
            del self.pieces[0]

    def is_heard(self, heard_s: float) -> bool:
        """Whether all its sound was heard."""
        return heard_s >= min(self.spoken_s, self.fed_s - 2 * SAME_S) + SAME_S

    def text(self, start: int = 0) -> str:
        return " ".join(filter(None, (*self.pieces[start:], self.open)))[-TEXT_CHARS:]


class ListenStream(SocketStream):
    """What both protocols have in common."""

    interims = True
    ask: str
    """The message that asks for the end of a part."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, turns: bool, batch_bytes: int = BATCH_BYTES) -> None:
        """`turns`: Deepgram finds the ends of turns."""
        super().__init__("deepgram", socket, batch_bytes)
        self.endpointing = turns
        self._fed_bytes = 0
        self._part_bytes = 0
        self._heard_s = 0.0
        self._done_s = -1.0
        self._parts: deque[Part] = deque([Part()])

    def send_audio(self, pcm: bytes) -> None:
        self._fed_bytes += len(pcm)
        self._part_bytes += len(pcm)
        part, samples = self._parts[-1], np.frombuffer(pcm, "<i2")
        peak = max(int(samples.max()), -int(samples.min()))
        part.peak = max(part.peak, peak)
        if peak > max(QUIET_PEAK, QUIET_SHARE * part.peak):
            part.spoken_s = self._fed_bytes / BYTES_PER_S
        self.send(pcm)

    def finish(self) -> None:
        self._cut(dropped=False)

    def reset(self) -> None:
        self._cut(dropped=True)

    def _cut(self, *, dropped: bool) -> None:
        self.flush(end=True)
        part = self._parts[-1]
        part.end_s = part.fed_s = self._fed_bytes / BYTES_PER_S
        part.spoken_s = part.spoken_s or part.fed_s
        part.dropped, part.empty = dropped, not self._part_bytes
        self._part_bytes = 0
        self._parts.append(Part())
        if not part.empty:
            self._ask(part)
        self.settle()

    def _ask(self, part: Part) -> None:
        part.asked_s, part.answered = self._heard_s, False
        self.send(self.ask)

    def settle(self) -> None:
        """Deliver the parts that are done, in order."""
        while (part := self._parts[0]).end_s is not None and (part.empty or self.is_done(part)):
            self._deliver(part)

    @abstractmethod
    def is_done(self, part: Part) -> bool:
        """Whether a part that has ended needs no more waiting."""

    def _deliver(self, part: Part) -> None:
        self._parts.popleft()
        if not part.empty and part.end_s is not None:
            self._done_s = part.end_s
        if not part.dropped:
            self.say(Heard(part.text(), final=True))

    def interim(self, *, eager: bool = False) -> None:
        """Say what the part that is asked for, or else is being fed, holds so far; nothing is a sign of life too."""
        part = self._parts[0]
        if not part.dropped:
            self.say(Heard(part.text(part.turn if self.endpointing else 0), final=False, eager=eager))

    def turn_ended(self) -> None:
        """Deepgram says that the caller has finished."""
        part = self._parts[0]
        if not self.endpointing or part.dropped:
            return
        text = part.text(part.turn)
        part.turn = len(part.pieces)
        if text:
            self.say(Heard(text, final=False, ended=True))

    def idle(self, quiet_s: float) -> None:
        part = self._parts[0]
        if part.end_s is not None and part.nudges < MOST_NUDGES:
            part.nudges += 1
            self.nudge(part)
            self.settle()
        elif self.endpointing and quiet_s >= STALLED_S and part.text(part.turn):
            self._hush(SILENCE)
        elif quiet_s >= KEEPALIVE_S:
            self.keep_alive()

    def _hush(self, silence: bytes) -> None:
        self._fed_bytes += len(silence)
        self.send(silence)

    @abstractmethod
    def nudge(self, part: Part) -> None:
        """A part that has ended is not answered."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Nothing was sent for a while, and nobody is spoken to."""


_CODE = re.compile(r"[A-Za-z0-9_-]{1,60}")


def stated(code: str) -> ConnectorError:
    """What an error message inside a stream means. `code`: Deepgram's own, in capitals."""
    what = "deepgram: an error" + (f" {code}" if _CODE.fullmatch(code) else "")
    if "AUTH" in code or "PERMISSION" in code or "PAYMENT" in code:
        return ProviderRejected(what, code="provider_unauthorized")
    if "TOO_MANY" in code or "RATE_LIMIT" in code:
        return ProviderLimited(what)
    if "INVALID" in code or "UNPARSABLE" in code or "BAD_REQUEST" in code:
        return ProviderRejected(what)
    return ProviderUnavailable(what)
