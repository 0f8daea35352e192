"""Loudness: how loud a voice speaks, and the gain that makes another voice as loud.

Levels are the RMS of active speech in dB of full scale (dBFS): pauses do not count. A full-scale square wave has 0.
"""

import math
from typing import TYPE_CHECKING

from meshag.audio import to_floats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

BLOCK_MS = 20
"""Energy is measured over this much audio."""

FLOOR_DB = -50
"""What is quieter than this is a pause, in any voice."""

RANGE_DB = 30
"""So is what is this much quieter than the loudest block so far."""

ENOUGH_MS = 200
"""A level is told once this much speech was heard."""

GAIN_MOST_DB = 15.0
"""No voice is made louder or quieter by more than this."""

KNEE = 0.8
"""Share of full scale over which a louder signal is bent, so that it never reaches the end of the scale."""

_SILENCE = 1e-12


class Loudness:
    """Measures the active-speech level of PCM16 mono, piece by piece as it comes."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._energy = [0.0] * (1 - FLOOR_DB)
        self._samples = [0] * (1 - FLOOR_DB)

    def push(self, pcm: bytes) -> None:
        """Hear `pcm`, any whole number of samples."""
        self.push_blocks(*_blocks(to_floats(pcm), self._rate_hz))

    def push_blocks(self, squares: list[float], samples: list[int]) -> None:
        """Hear blocks: the mean square and the length of each."""
        for square, count in zip(squares, samples, strict=True):
            bin_ = int(-_db(square))  # 0: the loudest
            if bin_ <= -FLOOR_DB:
                self._energy[max(bin_, 0)] += square * count
                self._samples[max(bin_, 0)] += count

    def heard(self) -> tuple[float, float]:
        """The level so far, dBFS, and how much speech it stands on, ms; (-inf, 0) before any."""
        first = next((bin_ for bin_, count in enumerate(self._samples) if count), None)
        if first is None:
            return -math.inf, 0.0
        active = slice(first, first + RANGE_DB)
        samples = sum(self._samples[active])
        return _db(sum(self._energy[active]) / samples), samples * 1000 / self._rate_hz

    @property
    def level_db(self) -> float | None:
        """The level, dBFS; None until `ENOUGH_MS` of speech was heard."""
        level_db, speech_ms = self.heard()
        return level_db if speech_ms >= ENOUGH_MS else None


def gain(pcm: bytes, db: float) -> bytes:
    """PCM16 made louder by `db`. Peaks that would pass full scale are bent, never cut and never wrapped."""
    return pcm if db == 0 else _shaped(to_floats(pcm) * 10 ** (db / 20))


class Matched:
    """One sentence of a voice, brought to the level of another voice while it streams. Adds no delay.

    Of a voice that was never heard before, only what has come so far tells the level: the gain begins with the first
    piece's own, follows what comes, and makes up for what the sentence has been too loud or too quiet until then.
    """

    SURE_MS = 1_000.0
    """The estimate follows the last second of speech."""

    KNOWN_MS, GUESSED_MS = 500.0, 50.0
    """How much speech a level counts for that was measured before, and the guess that both voices are equally loud."""

    ACTIVE_DB = 25.0
    """While a level is estimated, what is this much quieter than the loudest block is a pause."""

    CREST_DB = 8.0
    """No block comes out more than this above the reference: the first loud vowel after a quiet beginning would."""

    DOWN_MS = 1
    """So fast the gain comes down when a piece begins too loud: a step would click."""

    REPAIR_MOST_DB, REPAIR_MS = 4.0, 300.0
    """How much the sentence's own past may bend the gain, and the speech from which on it may do so fully."""

    def __init__(self, reference_db: float, rate_hz: int, level_db: float | None = None) -> None:
        """`reference_db`: the level to come to. `level_db`: this voice's own, if it was measured before."""
        self._reference_db = reference_db
        self._rate_hz = rate_hz
        self._known_db = level_db
        self._square = 10 ** ((reference_db if level_db is None else level_db) / 10)
        self._weight_ms = self.GUESSED_MS if level_db is None else self.KNOWN_MS
        self._loudest = 0.0
        self._gain_db: float | None = None
        self._in, self._out = Loudness(rate_hz), Loudness(rate_hz)

    @property
    def level_db(self) -> float | None:
        """The voice's own level, to be remembered for its next sentence; None: not known yet."""
        measured = self._in.level_db
        return self._known_db if measured is None else measured

    def push(self, pcm: bytes) -> bytes:
        """`pcm` at the reference's level: as many samples."""
        if not pcm:
            return b""
        import numpy as np

        samples = to_floats(pcm)
        squares, counts = _blocks(samples, self._rate_hz)
        self._in.push_blocks(squares, counts)
        for square, count in zip(squares, counts, strict=True):
            self._learn(square, count * 1000 / self._rate_hz)
        wanted_db = self._wanted_db()
        roof_db = self._reference_db + self.CREST_DB
        each_db = [min(wanted_db, roof_db - _db(square)) for square in squares]
        # From block to block the gain moves in a line, and where two differ the lower one holds at their border; only
        # that to the piece before is in the past, so from there it is a short way down.
        before_db = each_db[0] if self._gain_db is None else self._gain_db
        borders_db = [before_db, min(before_db, each_db[0]), *map(min, each_db, [*each_db[1:], each_db[-1]])]
        borders_db = [max(-GAIN_MOST_DB, min(GAIN_MOST_DB, border_db)) for border_db in borders_db]
        borders_at = [0, min(self._rate_hz * self.DOWN_MS // 1000, counts[0]), *np.cumsum(counts)]
        self._gain_db = borders_db[-1]
        gains_db = np.interp(np.arange(len(samples)), borders_at, borders_db)
        louder = _shaped(samples * np.power(10.0, gains_db / 20).astype(np.float32))
        self._out.push(louder)
        return louder

    def _learn(self, square: float, ms: float) -> None:
        self._loudest = max(self._loudest, square)
        if square > max(10 ** (FLOOR_DB / 10), self._loudest * 10 ** (-self.ACTIVE_DB / 10)):
            self._square = (self._square * self._weight_ms + square * ms) / (self._weight_ms + ms)
            self._weight_ms = min(self._weight_ms + ms, self.SURE_MS)

    def _wanted_db(self) -> float:
        wanted_db = self._reference_db - _db(self._square)
        so_far_db, speech_ms = self._out.heard()
        if speech_ms:
            repair_db = (self._reference_db - so_far_db) * min(1.0, speech_ms / self.REPAIR_MS)
            wanted_db += max(-self.REPAIR_MOST_DB, min(self.REPAIR_MOST_DB, repair_db))
        return wanted_db


def _db(square: float) -> float:
    return 10 * math.log10(square + _SILENCE)


def _blocks(samples: "Floats", rate_hz: int) -> tuple[list[float], list[int]]:
    """The mean square and the length of each block; the last one may be shorter."""
    import numpy as np

    if not len(samples):
        return [], []
    starts = np.arange(0, len(samples), rate_hz * BLOCK_MS // 1000)
    counts = np.diff(starts, append=len(samples))
    return (np.add.reduceat(np.square(samples, dtype=np.float64), starts) / counts).tolist(), counts.tolist()


def _shaped(samples: "Floats") -> bytes:
    """PCM16 of samples that may pass full scale: over `KNEE` they approach it and never reach it."""
    import numpy as np

    over = np.abs(samples) - KNEE
    if over.max(initial=-1.0) > 0:
        room = 1 - KNEE
        bent = np.copysign(KNEE + room * np.tanh(over / room), samples)
        samples = np.where(over > 0, bent, samples)
    pcm: bytes = np.rint(samples * 32767.0).astype("<i2").tobytes()
    return pcm
