"""Voice activity: how likely a short piece of audio is speech, by the Silero model.

Pure computing, a tenth of a millisecond for each 32 ms of audio, so it runs on the event loop.
"""

from pathlib import Path

import numpy as np

from meshag.audio import RATE_HZ, to_floats
from meshag.models.onnx import open_session

WINDOW_SAMPLES = 512
"""The model judges this many samples at a time: 32 ms."""

WINDOW_MS = WINDOW_SAMPLES * 1000 // RATE_HZ

CONTEXT_SAMPLES = 64
"""It also sees the end of the window before."""

_NO_CONTEXT = np.zeros(CONTEXT_SAMPLES, np.float32)
_NO_STATE = np.zeros((2, 1, 128), np.float32)


class SileroModel:
    """The loaded model, shared by all sessions of a process."""

    def __init__(self, path: Path) -> None:
        """Load the ONNX file. Raises ModelError."""
        self.session = open_session(path)


class SileroVad:
    """One session's detector."""

    def __init__(self, model: SileroModel) -> None:
        self._session = model.session
        self._rate_hz = np.array(RATE_HZ, np.int64)
        self._rest = bytearray()
        self._context = _NO_CONTEXT
        self._state = _NO_STATE

    def push(self, pcm: bytes) -> list[float]:
        """The probability of speech, 0..1, in each window that `pcm` (16 kHz PCM16, any length) completes."""
        self._rest += pcm
        found = []
        while len(self._rest) >= 2 * WINDOW_SAMPLES:
            window = to_floats(bytes(self._rest[: 2 * WINDOW_SAMPLES]))
            del self._rest[: 2 * WINDOW_SAMPLES]
            samples = np.concatenate((self._context, window))
            output, self._state = self._session.run(
                None, {"input": samples[np.newaxis, :], "state": self._state, "sr": self._rate_hz}
            )
            self._context = window[-CONTEXT_SAMPLES:]
            found.append(float(output[0, 0]))
        return found

    def reset(self) -> None:
        """Forget everything heard: the next audio has nothing to do with it."""
        self._rest.clear()
        self._context = _NO_CONTEXT
        self._state = _NO_STATE
