"""What a vendor's voice is given and what it gives: plain text in, pieces of whole samples out."""

import unicodedata
from collections.abc import Iterator

SHORTEST_MS, FIRST_MOST_MS, LONGEST_MS = 20, 100, 200
"""A piece of audio lasts this long. The first one is short, so that the caller hears it soon."""


class Pieces:
    """Cuts one utterance's PCM16 mono, however it arrives. What is there goes on at once, unless it is too short."""

    def __init__(self, rate_hz: int) -> None:
        self._bytes_per_ms = rate_hz * 2 / 1000
        self._rest = b""
        self.begun = False
        """Whether a piece has been given out."""

    def _size(self, ms: int) -> int:
        return int(self._bytes_per_ms * ms) // 2 * 2

    def push(self, pcm: bytes) -> Iterator[bytes]:
        """The pieces that `pcm` completes: any number of bytes, also an odd one."""
        return self._cut(pcm, self._size(SHORTEST_MS))

    def flush(self) -> Iterator[bytes]:
        """What is left at the end. Half a sample is dropped."""
        return self._cut(b"", 2)

    def _cut(self, pcm: bytes, least: int) -> Iterator[bytes]:
        audio, at = self._rest + pcm if self._rest else pcm, 0
        self._rest = b""
        while len(audio) - at >= least:
            most = self._size(LONGEST_MS if self.begun else FIRST_MOST_MS)
            size = min(len(audio) - at, most) // 2 * 2
            if 1 < len(audio) - at - size < least <= size - least:  # rather a little less now than a rest that waits
                size -= least
            self.begun = True
            yield audio[at : at + size]
            at += size
        self._rest = audio[at:]


def sayable(text: str) -> str:
    """`text` without what no protocol can carry: control characters, halves of characters. Empty: nothing to say."""
    clean = " ".join("".join(" " if _unsayable(char) else char for char in text).split())
    return clean if any(char.isalnum() for char in clean) else ""


def _unsayable(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Cn") or char in "\ufffe\uffff\u2028\u2029"
