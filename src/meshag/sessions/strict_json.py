"""JSON from strangers: bounded in size and depth, each key once, every number and every text one that can be stored."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from meshag.sessions.problems import ConfigProblems, Problem, dotted

MAX_BYTES = 65_536
"""Longest body, bytes."""

MAX_DEPTH = 16
"""Deepest nesting of objects and arrays."""

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)
_DIGITS = 18
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What neither Valkey nor JSON can hold in a text."""


class _Refused(ValueError):  # noqa: N818 - reads as what happened
    """A token that JSON allows, or Python does, and we do not."""


def read_json(body: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> object:
    """The value in `body`. Raises ConfigProblems, in time bounded by `max_bytes`, for whatever else it is."""
    if len(body) > max_bytes or (isinstance(body, str) and len(body.encode("utf-8", "surrogatepass")) > max_bytes):
        _refuse("", f"longer than {max_bytes} bytes", "send less: long documents do not belong here", "body_too_large")
    try:
        text = body if isinstance(body, str) else body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse("", f"not UTF-8 at byte {error.start}", "send UTF-8 text", "body_not_json")
    if _depth(text) > max_depth:
        _refuse("", f"nested deeper than {max_depth}", "send a flatter document", "body_too_deep")
    twice: dict[int, tuple[Any, str]] = {}
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _once(pairs, twice),
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
    except _Refused as error:
        _refuse("", str(error), "use an ordinary number", "number_out_of_range")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        _refuse("", f"not JSON: {error.msg} at {where}", "send a JSON object", "body_not_json")
    if twice:
        paths = {id(place): path for path, place in walk(value) if id(place) in twice}
        key = [dotted(*paths.get(spot, ()), name) for spot, (_, name) in twice.items()]
        raise ConfigProblems([Problem(path, "given twice", "keep one of them", "duplicate_key") for path in key])
    check_texts(value)
    return value


def check_texts(value: object) -> None:
    """Raises ConfigProblems when a text or key in `value` holds NUL or half a surrogate pair: neither can be stored."""
    bad = [path for path, text in walk(value) if isinstance(text, str) and UNSTORABLE.search(text)]
    fix = "remove it: every character must be one of Unicode, and none NUL"
    if bad:
        raise ConfigProblems(
            [Problem(dotted(*p), "holds a character no text may hold", fix, "text_invalid") for p in bad]
        )


def walk(value: object) -> Iterator[tuple[tuple[object, ...], object]]:
    """Every value in a JSON value with its path, and every key of an object as a value at its own path."""
    todo: list[tuple[tuple[object, ...], object]] = [((), value)]
    while todo:
        path, place = todo.pop()
        yield path, place
        if isinstance(place, dict):
            for key, item in place.items():
                yield (*path, key), key
                todo.append(((*path, key), item))
        elif isinstance(place, list):
            todo.extend(((*path, i), item) for i, item in enumerate(place))


def _depth(text: str) -> int:
    deepest = depth = 0
    for token in _TOKEN.finditer(text):
        first = token.group()[0]
        depth += (first in "[{") - (first in "]}")
        deepest = max(deepest, depth)
    return deepest


def _once(pairs: list[tuple[str, Any]], twice: dict[int, tuple[Any, str]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        again = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        twice[id(made)] = (made, again)
    return made


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _Refused(f"a number has more than {_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise _Refused("a number is too large")
    return number


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")


def _refuse(path: str, message: str, fix: str, code: str) -> NoReturn:
    raise ConfigProblems([Problem(path, message, fix, code)]) from None
