"""A reply that another model goes on with: what it repeats of what was said already is taken away."""

import bisect
import re

_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?…。！？]\s)|(?<=[,;:—]\s))(?=\S)")

LEAST_CHARS = 8
"""A shorter repetition may well be meant."""

_BLANKS = re.compile(r"\s+")


class Continuation:
    """Takes the pieces of a text that goes on after `said`, and gives them out without a repetition at their beginning.

    Models that are told to go on like to begin anew: with all that was said, or with the last sentence or clause.
    Pieces that may still turn out to be such a repetition are kept back until that is known.
    """

    def __init__(self, said: str) -> None:
        self._said = said
        flat = _flat(said)
        starts = {match.start() for match in _SENTENCE_START.finditer(flat)}
        self._known = [flat[at:] for at in sorted(starts) if len(flat) - at >= LEAST_CHARS]
        """What a repetition may be: from the beginning of a sentence or clause to the end of what was said."""
        self._held: str | None = "" if self._known else None
        self._began = False

    def push(self, piece: str) -> str:
        """What can be given out now."""
        if self._held is None:
            return self._joined(piece)
        self._held += piece
        flat = _flat(self._held)
        if any(known.startswith(flat) and known != flat for known in self._known):
            return ""
        return self._release(flat)

    def flush(self) -> str:
        """The rest, at the end of the text."""
        return "" if self._held is None else self._release(_flat(self._held))

    def _release(self, flat: str) -> str:
        held, self._held = self._held or "", None
        repeated = max((known for known in self._known if flat.startswith(known)), key=len, default="")
        return self._joined(held[_raw_length(held, len(repeated)) :])

    def _joined(self, text: str) -> str:
        """A blank stands between what was said and what follows, whatever the model makes of it."""
        if self._began or not text:
            return text
        if self._said[-1:].isspace():
            text = text.lstrip()
            self._began = bool(text)
            return text
        self._began = True
        return f" {text}" if self._said and text[0].isalnum() else text


def _flat(text: str) -> str:
    """`text` without what models like to change when they repeat: case and blanks."""
    return _BLANKS.sub(" ", text).strip().casefold()


def _raw_length(text: str, flat_length: int) -> int:
    """How much of `text` makes the first `flat_length` characters of its flat form."""
    return bisect.bisect_left(range(len(text)), flat_length, key=lambda at: len(_flat(text[:at])))
