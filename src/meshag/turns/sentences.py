"""Cuts a reply, as it streams, into pieces that a voice can speak by themselves, and makes text fit to be spoken."""

import re
import unicodedata

FIRST_MIN_CHARS, FIRST_MAX_CHARS = 12, 60
"""The first piece: a clause is enough, and without one it is cut at a blank, so that the voice can begin."""

MIN_CHARS, MAX_CHARS = 20, 240
"""The pieces after it: whole sentences, unless one is longer than this."""

_CJK_ENDS = "。！？｡"
_ENDS = ".!?…"
_CLOSERS = "\"'”’»)]}*_`」』）】"
_END = re.compile(rf"[{_ENDS}{_CJK_ENDS}]+|\n")
_TAIL = re.compile(rf"[{_ENDS}{_CJK_ENDS}]*[{re.escape(_CLOSERS)}]*")
_CLAUSE = re.compile(rf"[,;:][{re.escape(_CLOSERS)}]*\s|—|\s–\s|[，；：、]")
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘«*_]*\Z")
_ABBREVIATIONS = frozenset(
    "adm approx assoc aug ave bldg blvd bros bzw ca capt cmdr corp dept d.h dr e.g eq etc feb fig gov hon i.e inc jan "  # noqa: SIM905
    "jr ltd maj mr mrs ms nov oct ph.d phd pp prof p.s pvt sen sep sept sgt sr st univ usw vol vs z.b".split()
)
"""Words whose full stop does not end a sentence. Words that often end one (no, max, sun) are left out on purpose."""
_UNDECIDED = -1


def _sentence_cut(text: str, at: int, final: bool) -> int:
    """Where the sentence that may end at the mark `text[at]` is cut off: after it and one blank.

    0: it does not end here. _UNDECIDED: the text that follows tells, and has not come yet.
    """
    if text[at] == "\n":
        return at + 1
    tail = _TAIL.match(text, at)
    after = tail.end() if tail else at + 1
    mark = text[at:after].rstrip(_CLOSERS)
    if after == len(text):
        return (after if _is_end(text, at, mark) else 0) if final else _UNDECIDED
    if mark[-1] in _CJK_ENDS:
        return after + text[after].isspace()
    if not text[after].isspace() or not _is_end(text, at, mark):
        return 0
    if mark[-1] == "…" or mark.endswith(".."):
        following = text[after:].lstrip()
        if not following:
            return after + 1 if final else _UNDECIDED
        if following[0].islower():
            return 0
    return after + 1


def _is_end(text: str, at: int, mark: str) -> bool:
    """False: the full stop belongs to an abbreviation, an initial or a number in a list."""
    if mark != ".":
        return True
    found = _WORD_BEFORE.search(text, max(0, at - 24), at)
    word = found.group() if found else ""
    if word.isdigit():
        line = text.rfind("\n", 0, at) + 1
        return text[line:at].strip() != word
    initials = all(len(part) == 1 and part.isalpha() for part in word.split(".")) and word != "I"
    return not initials and word.lower() not in _ABBREVIATIONS


def _next_cut(text: str, start: int, *, first: bool, final: bool) -> int:
    """Where the piece that begins at `start` is cut off. 0: not known yet."""
    at_least, at_most = (FIRST_MIN_CHARS, FIRST_MAX_CHARS) if first else (MIN_CHARS, MAX_CHARS)
    window = text[start : start + at_most + 1]
    full = len(window) > at_most
    ends_here = final and not full
    marks = [(m.start(), _sentence_cut(window, m.start(), ends_here)) for m in _END.finditer(window)]
    if first:
        marks += [(m.start(), m.end()) for m in _CLAUSE.finditer(window)]
    for _, cut in sorted(marks):
        if cut == _UNDECIDED and not full:
            return 0
        if 0 < cut <= at_most and _weight(window[:cut].strip()) >= at_least:
            return start + cut
    if full:
        return start + _forced_cut(window[:at_most])
    return 0


def _weight(piece: str) -> int:
    """Its length, where a character of a script without blanks counts twice: it says as much as a syllable."""
    return len(piece) + sum(char >= "\u2e80" for char in piece)


def _forced_cut(piece: str) -> int:
    clauses = [match.end() for match in _CLAUSE.finditer(piece, len(piece) // 2)]
    blanks = [match.end() for match in re.finditer(r"\S\s", piece)]
    return (clauses or blanks or [len(piece)])[-1]


class Chunker:
    """Cuts one reply. What comes out, joined, is exactly what went in, however it was cut on the way in."""

    def __init__(self, *, first: bool = True) -> None:
        """`first`: whether the reply begins here; False when it goes on after a takeover."""
        self._rest = ""
        self._first = first

    def push(self, delta: str) -> list[str]:
        """The pieces that `delta` completes. A sentence is complete when the character after it is known."""
        return self._cut(delta, final=False)

    def flush(self) -> list[str]:
        """What is left, at the end of the reply. The next push begins another reply."""
        pieces = self._cut("", final=True)
        if self._rest:
            pieces.append(self._rest)
        self._rest, self._first = "", True
        return pieces

    def _cut(self, delta: str, *, final: bool) -> list[str]:
        text, start, pieces = self._rest + delta, 0, []
        while cut := _next_cut(text, start, first=self._first, final=final):
            pieces.append(text[start:cut])
            start, self._first = cut, False
        self._rest = text[start:]
        return pieces


def last_whole_sentence(text: str) -> int:
    """Index of the end of the last whole sentence in `text`, its blanks included: `text[:index]` can stand alone.

    0 when no sentence is whole. A full stop at the very end counts, except after a digit ("3." may become "3.5").
    """
    for match in reversed(list(_END.finditer(text))):
        at = match.start()
        cut = _sentence_cut(text, at, True)
        if cut == len(text) and text[at] == "." and text[at - 1 : at].isdigit():
            continue
        if cut > 0 and text[:cut].strip():
            return len(text) - len(text[cut:].lstrip())
    return 0


_FENCE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\[\]]{0,500})\]\([^()\s]{0,2000}\)")
_LINK = re.compile(r"\[([^\[\]]{1,500})\]\([^()\s]{0,2000}\)")
_ADDRESS = r"[^\s/?#<>()\"'`\]]+)[^\s<>()\"'`\]]*"
_URL = re.compile(rf"\b(?:https?|ftp)://(?:www\.)?({_ADDRESS}|\bwww\.({_ADDRESS}")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_LINE_START = re.compile(
    r"^[ \t]*(?:(?:[-*_][ \t]*){3,}$|#{1,6}[ \t]+|>[ \t]?|[-*+•][ \t]+(?:\[[ xX]\][ \t]+)?)", re.MULTILINE
)
_MARKS = re.compile(r"\*+|~~|`+|(?<!\w)_+|_+(?!\w)|^\||\|$", re.MULTILINE)
_EMOJI_PARTS = "\ufe0e\ufe0f\u20e3\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
_SAYABLE_SIGNS = "°℃℉№\u200c"
_BLANK_BEFORE_MARK = re.compile(r" (?=[.,;:!?](?: |$))")
_TIMES = re.compile(r"(?<=\d)\s*\*\s*(?=\d)")


def speakable(text: str) -> str:
    """`text` as a voice can say it: without markup, code, emoji and addresses. May be empty. Always one line."""
    text = _FENCE.sub(" ", text)
    text = _LINK.sub(r"\1", _IMAGE.sub(r"\1", text))
    text = _URL.sub(lambda match: (match[1] or match[2]).rstrip(".,;:!?") + _punctuation_after(match[0]), text)
    text = _TAG.sub(" ", text)
    text = _LINE_START.sub("", text)
    text = _MARKS.sub("", _TIMES.sub(" times ", text))
    text = " ".join("".join(_said(char) for char in text).split())
    text = _BLANK_BEFORE_MARK.sub("", text)
    return text if any(char.isalnum() for char in text) else ""


def _punctuation_after(address: str) -> str:
    return address[-1] if address[-1] in ".,;:!?" else ""


def _said(char: str) -> str:
    if char in "|\\":
        return " "
    kind = unicodedata.category(char)
    if kind in ("Cc", "Zl", "Zp"):
        return " "
    unsayable = kind in ("So", "Cs", "Co", "Cn", "Cf") or char in _EMOJI_PARTS
    return "" if unsayable and char not in _SAYABLE_SIGNS else char
