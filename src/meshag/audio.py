"""Audio: one format on the bus, and the way to it.

Callers are heard as PCM16 little-endian mono at 16 kHz in frames of 20 ms. A voice speaks at its own rate; the
transport brings it to the caller's.
"""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshag.errors import WireError

if TYPE_CHECKING:  # loaded when first used: llm services never need them, and each import costs a start 0.2 s
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

RATE_HZ = 16_000
"""Sample rate of caller audio on the bus."""

FRAME_MS = 20
"""Length of a frame, ms."""

FRAME_BYTES = RATE_HZ * FRAME_MS // 1000 * 2
"""640."""

RATES_HZ = (8_000, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Sample rates that a caller may declare."""


def to_floats(pcm: bytes) -> "Floats":
    """PCM16 bytes to float32 in -1..1."""
    import numpy as np

    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0


def from_floats(samples: "npt.ArrayLike") -> bytes:
    """Float samples in -1..1 to PCM16 bytes, clipped. NaN becomes silence."""
    import numpy as np

    clean = np.nan_to_num(np.asarray(samples, dtype=np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    return (np.clip(clean, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def duration_ms(pcm: bytes, rate_hz: int = RATE_HZ) -> int:
    """Length of PCM16 mono audio, ms."""
    return len(pcm) * 1000 // (2 * rate_hz)


class Resampler:
    """Brings a stream of PCM16 mono from one rate to another, piece by piece. Equal rates pass untouched."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._stream: Any = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="int16", quality="MQ")

    def push(self, pcm: bytes, *, last: bool = False) -> bytes:
        """What can be given out after `pcm`. `last`: also what is still inside."""
        if self._stream is None:
            return pcm
        import numpy as np

        resampled: bytes = self._stream.resample_chunk(np.frombuffer(pcm, "<i2"), last=last).tobytes()
        return resampled


class Framer:
    """Cuts a byte stream into frames of 20 ms."""

    def __init__(self, frame_bytes: int = FRAME_BYTES) -> None:
        self._frame_bytes = frame_bytes
        self._rest = b""

    def push(self, pcm: bytes) -> Iterator[bytes]:
        """The frames that `pcm` completes."""
        data = self._rest + pcm if self._rest else pcm
        whole = len(data) - len(data) % self._frame_bytes
        self._rest = data[whole:]
        for start in range(0, whole, self._frame_bytes):
            yield data[start : start + self._frame_bytes]


def read_wav(path: str | Path) -> tuple[bytes, int]:
    """PCM16 mono bytes and the sample rate of a WAV file. Raises WireError for any other kind of file."""
    try:
        with wave.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise WireError(f"{path}: a mono WAV file with 16-bit samples is needed")
            return file.readframes(file.getnframes()), file.getframerate()
    except (wave.Error, EOFError) as error:
        raise WireError(f"{path} is not a WAV file: {error}") from None


def write_wav(path: str | Path, pcm: bytes, rate_hz: int) -> None:
    """Write PCM16 mono bytes as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm)
