"""Tells a person how far a download is."""

from typing import Protocol, TextIO

from meshag import clock

LINE_EVERY_S = 2.0
"""Off a terminal, a line at most this often, seconds."""

REDRAW_EVERY_S = 0.1
"""On a terminal, a redraw at most this often, seconds."""

BAR_CHARS = 24


class Progress(Protocol):
    """What pulling reports to."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def bytes(self, label: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `label` have arrived."""


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def bytes(self, label: str, done: int, total: int) -> None:
        """Nothing."""


class Meter:
    """One line: on a terminal a bar that is redrawn, elsewhere a plain line every two seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tty = stream.isatty()
        self._label = ""
        self._next_s = 0.0
        self._open = False
        self._complete = False

    def note(self, text: str) -> None:
        """Print `text` on a line of its own."""
        self._close()
        print(text, file=self._stream, flush=True)

    def bytes(self, label: str, done: int, total: int) -> None:
        """Show `done` of `total` bytes of `label`."""
        now_s = clock.monotonic_s()
        complete = done >= total
        if label != self._label:
            self._label = label
            self._complete = False
            self._next_s = now_s + (0.0 if self._tty else LINE_EVERY_S)
        if self._complete or (now_s < self._next_s and not complete):
            return
        self._complete = complete
        self._next_s = now_s + (REDRAW_EVERY_S if self._tty else LINE_EVERY_S)
        share = done / total if total else 1.0
        line = f"{label}  {megabytes(done)} of {megabytes(total)}  {share:4.0%}"
        if self._tty:
            full = round(share * BAR_CHARS)
            self._stream.write(f"\r\x1b[K[{'#' * full}{'.' * (BAR_CHARS - full)}] {line}")
            self._open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        if complete:
            self._close()

    def _close(self) -> None:
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


def megabytes(size_bytes: int) -> str:
    """`54.6 MB`."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 100e6 else f"{size_bytes / 1e6:.0f} MB"
