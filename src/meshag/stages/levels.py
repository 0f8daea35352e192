"""How loud the voices of this worker speak, so that one that stands in for another is as loud as that one."""

from collections import OrderedDict
from typing import Protocol, TypeVar

from meshag.loudness import Loudness, Matched

T = TypeVar("T")

VOICES = 256
"""Voices remembered, the latest used."""

ENOUGH_MS = 10_000.0
"""A voice is measured until this much of it was heard."""

Voice = tuple[str, bytes]
"""A provider and its options: the same two speak at the same level."""


class Fit(Protocol):
    """What a sentence's audio passes through."""

    def push(self, pcm: bytes) -> bytes:
        """As many samples."""
        ...

    def done(self) -> None:
        """The sentence is over."""
        ...


class Levels:
    """The levels of voices as they were heard here."""

    def __init__(self) -> None:
        self._heard: OrderedDict[Voice, Loudness] = OrderedDict()
        self._levels_db: OrderedDict[Voice, float] = OrderedDict()

    def fit(self, voice: Voice, own: Voice, rate_hz: int) -> Fit:
        """For a sentence of `voice`: the session's `own` passes as it is and is measured, another one is matched."""
        if voice == own:
            return _Measured(self, voice, rate_hz)
        reference_db = self._levels_db.get(own)
        if reference_db is None:
            return _Measured(self, voice, rate_hz)  # never heard here: there is nothing to match
        return _Matched(self, voice, Matched(reference_db, rate_hz, self._levels_db.get(voice)))

    def level_db(self, voice: Voice) -> float | None:
        """How loud a voice speaks; None: it was not heard here, nor told by who heard it."""
        return self._levels_db.get(voice)

    def told(self, voice: Voice, level_db: float) -> None:
        """Another worker has heard it. What was heard here counts more."""
        if voice not in self._levels_db:
            self.remember(voice, level_db)

    def measure(self, voice: Voice, rate_hz: int) -> Loudness | None:
        """The measurement that is going on; None when the voice is known well enough."""
        loudness = self._heard.get(voice) or Loudness(rate_hz)
        _keep(self._heard, voice, loudness)
        return None if loudness.heard()[1] >= ENOUGH_MS else loudness

    def remember(self, voice: Voice, level_db: float | None) -> None:
        """Note a voice's level."""
        if level_db is not None:
            _keep(self._levels_db, voice, level_db)


def _keep(kept: OrderedDict[Voice, T], voice: Voice, what: T) -> None:
    """Put it in as the latest used; the one that was not used for longest makes room."""
    kept[voice] = what
    kept.move_to_end(voice)
    if len(kept) > VOICES:
        kept.popitem(last=False)


class _Measured:
    def __init__(self, levels: Levels, voice: Voice, rate_hz: int) -> None:
        self._levels, self._voice = levels, voice
        self._loudness = levels.measure(voice, rate_hz)

    def push(self, pcm: bytes) -> bytes:
        if self._loudness is not None:
            self._loudness.push(pcm)
            self._levels.remember(self._voice, self._loudness.level_db)  # now: it may break off in mid-sentence
        return pcm

    def done(self) -> None:
        """All is noted."""


class _Matched:
    def __init__(self, levels: Levels, voice: Voice, matched: Matched) -> None:
        self._levels, self._voice, self._matched = levels, voice, matched

    def push(self, pcm: bytes) -> bytes:
        return self._matched.push(pcm)

    def done(self) -> None:
        self._levels.remember(self._voice, self._matched.level_db)


class AsItIs:
    """For a session with one voice alone."""

    def push(self, pcm: bytes) -> bytes:
        """The same."""
        return pcm

    def done(self) -> None:
        """Nothing."""
