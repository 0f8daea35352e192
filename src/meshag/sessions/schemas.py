"""JSON schemas from strangers: which ones are accepted, and whether a value keeps to one, in bounded time.

It is JSON Schema 2020-12 without what would let its author reach out or hold us up: references lead only to other
places of the same schema, regular expressions (`pattern`) are for the model and not evaluated here, and a check that
takes too many steps is given up.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any
from urllib.parse import unquote

import msgspec

from meshag.sessions.problems import Problem, dotted
from meshag.sessions.strict_json import walk

SCHEMA_BYTES = 16 * 1024
"""A longer schema is refused."""

SUBSCHEMAS = 128
"""So many schemas may stand in one, itself counted."""

STEPS = 20_000
"""A check that takes more is given up, after about a tenth of a second."""

DEPTH = 100
"""A check that goes deeper is given up. Far from Python's own limit: there, a library that ours uses does not raise an
error but panics, which nothing catches."""

MOST_SAID = 5
"""So many things that are wrong with a value are told."""

MESSAGE_CHARS = 200
"""Each of them is cut at this length."""

DIALECTS = ("/draft/2020-12/schema", "/draft/2019-09/schema", "/draft-07/schema", "/draft-06/schema")
"""What `$schema` may end with; all are read as 2020-12."""

REFUSED = frozenset(
    {
        *("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"),
        *("patternProperties", "unevaluatedItems", "unevaluatedProperties", "dependencies", "additionalItems"),
    }
)
"""Keywords that have another base or another dialect begin, need strangers' regular expressions, or are obsolete."""

_ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "properties")
_LONGEST = {"enum": 1000, "type": 7}
_LONG = 128


class _TooMuch(Exception):  # noqa: N818 - reads as what happened
    """The steps are used up, or too many checks stand in one another."""


@dataclass(slots=True)
class _Work:
    steps: int = 0
    depth: int = 0


_work: ContextVar[_Work] = ContextVar("schema_work")


# -- the schema itself ------------------------------------------------------------------------------------------------


def schema_problems(schema: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the schema of an object. Paths are relative to it."""
    size = len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    if size > SCHEMA_BYTES:
        fix = "describe less: the model reads all of it in every turn"
        return [Problem("", f"longer than {SCHEMA_BYTES} bytes", fix, "tool_schema_too_large")]
    if schema.get("type") != "object":
        return [Problem("type", "must be 'object'", "write {'type': 'object', 'properties': {…}}", "tool_schema")]
    return _size_problems(schema) or _keyword_problems(schema) or _metaschema_problems(schema)


def _size_problems(schema: Mapping[str, Any]) -> list[Problem]:
    """What would make checking slow, the metaschema's check too."""
    if sum(1 for _ in islice(_subschemas(schema), SUBSCHEMAS + 1)) > SUBSCHEMAS:
        said, fix = f"more than {SUBSCHEMAS} schemas in one", "describe less, or make several tools of it"
        return [Problem("", said, fix, "tool_schema_too_large")]
    for path, place in walk(schema):
        longest = _LONGEST.get(str(path[-1]) if path else "", _LONG)
        if isinstance(place, list) and len(place) > longest:
            said, fix = f"a list of more than {longest}", "shorten it"
            return [Problem(dotted(*path), said, fix, "tool_schema_too_large")]
    return []


def _keyword_problems(schema: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    places = dict(_subschemas(schema))
    for path, place in places.items():
        if not isinstance(place, Mapping):
            continue
        for keyword in place:
            if keyword in REFUSED:
                said, fix = f"'{keyword}' cannot be used here", "remove it"
                problems.append(Problem(dotted(*path, keyword), said, fix, "tool_schema_keyword"))
        dialect = place.get("$schema")
        if "$schema" in place and (path or not isinstance(dialect, str) or not dialect.rstrip("#").endswith(DIALECTS)):
            said, fix = "only 2020-12 is understood, said at the top", "remove '$schema'"
            problems.append(Problem(dotted(*path, "$schema"), said, fix, "tool_schema_keyword"))
        if "$ref" in place and (said := _reference_problem(place["$ref"], places)):
            fix = "point to a schema in this one: '#/$defs/…'"
            problems.append(Problem(dotted(*path, "$ref"), said, fix, "tool_schema_reference"))
    return problems


def _reference_problem(reference: object, places: Mapping[tuple[str, ...], object]) -> str:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return "leads out of this schema"
    steps = [step.replace("~1", "/").replace("~0", "~") for step in unquote(reference[1:]).split("/")[1:]]
    return "" if tuple(steps) in places else "leads to no schema"


def _metaschema_problems(schema: Mapping[str, Any]) -> list[Problem]:
    from jsonschema import Draft202012Validator, SchemaError  # takes 0.2 s, and most processes never need it

    try:
        Draft202012Validator.check_schema(schema, format_checker=None)
    except SchemaError as error:
        said = error.message[:MESSAGE_CHARS]
        return [Problem(dotted(*error.absolute_path), said, "see json-schema.org", "tool_schema")]
    except Exception as error:  # of a schema that the library itself stumbles over
        return [Problem("", f"cannot be read: {type(error).__name__}", "simplify it", "tool_schema")]
    return []


def _subschemas(schema: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every place of a schema that holds a schema, with its path."""
    todo: list[tuple[tuple[str, ...], object]] = [((), schema)]
    while todo:
        path, place = todo.pop()
        yield path, place
        if not isinstance(place, Mapping):
            continue
        for keyword, value in place.items():
            if keyword in _ONE:
                todo.append(((*path, keyword), value))
            elif keyword in _LISTED and isinstance(value, list):
                todo += [((*path, keyword, str(i)), item) for i, item in enumerate(value)]
            elif keyword in _NAMED and isinstance(value, Mapping):
                todo += [((*path, keyword, name), item) for name, item in value.items()]


# -- a value ----------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Load what checking a value takes, which blocks for 0.2 s the first time. For a thread, before it is needed."""
    value_problems({"type": "object"}, {})


def value_problems(schema: Mapping[str, Any], value: object) -> list[str]:
    """What is wrong with `value`, for whoever wrote it: `city: 5 is not of type 'string'`. Never fetches anything."""
    from referencing import Registry

    alone = {keyword: said for keyword, said in schema.items() if keyword != "$schema"}  # it would choose the checks
    mark = _work.set(_Work())
    try:
        errors = islice(_validator()(alone, registry=Registry()).iter_errors(value), MOST_SAID)
        return [": ".join(filter(None, (dotted(*error.absolute_path), error.message))) for error in errors]
    except _TooMuch:
        return ["too much to check: write something simpler"]
    except Exception as error:  # a schema that cannot be evaluated: a number beyond floats, a reference into nothing
        return [f"cannot be checked: {type(error).__name__}"]
    finally:
        _work.reset(mark)


@cache
def _validator() -> Any:
    """jsonschema's validator whose every keyword counts its steps."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def unique(_: Any, wanted: object, instance: object, __: object) -> Iterator[Any]:
        """The library's own takes quadratic time."""
        items = instance if wanted and isinstance(instance, list) else []
        if len({msgspec.json.encode(item, order="sorted") for item in items}) < len(items):
            yield ValidationError("has the same item twice")

    checks = {name: _counted(check) for name, check in Draft202012Validator.VALIDATORS.items()}
    checks["uniqueItems"] = _counted(unique)
    for name in REFUSED | {"pattern"}:
        checks[name] = _nothing
    return validators.extend(Draft202012Validator, checks)


def _nothing(*_: object) -> Iterator[Any]:
    yield from ()


def _counted(check: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    measure = _weight if check.__name__ in ("const", "enum", "unique") else _breadth  # these look into all of it

    def counted(validator: Any, said: object, instance: object, schema: object) -> Iterator[Any]:
        work = _work.get()
        work.depth += 1
        try:
            _spend(work, 1 + measure(said) + measure(instance))
            for error in check(validator, said, instance, schema) or ():
                _spend(work, len(error.message) // 64)
                error.message = error.message[:MESSAGE_CHARS]
                yield error
        finally:
            work.depth -= 1

    return counted


def _spend(work: _Work, steps: int) -> None:
    work.steps += steps
    if work.steps > STEPS or work.depth > DEPTH:
        raise _TooMuch


def _breadth(value: object) -> int:
    return len(value) if isinstance(value, (list, dict)) else 0


def _weight(value: object) -> int:
    return len(msgspec.json.encode(value)) // 16
