"""What is wrong with a configuration: each problem names its field and the fix."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from meshag.errors import ConfigError

MOST = 50
"""Problems reported at once; a hostile body can hold thousands."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth knowing."""

    path: str
    """The field in dots: `config.pipeline.flow.1.to`. Empty: the body as a whole."""

    message: str
    """What is wrong, for people."""

    fix: str
    """What to do about it."""

    code: str = "config_invalid"
    """A stable snake_case word for programs."""

    warning: bool = False
    """True: the session works all the same."""


class ConfigProblems(ConfigError):  # noqa: N818 - it is several
    """Everything that is wrong, not only the first thing. `code` is the problems' own when they agree on one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """`problems`: at least one; those over `MOST` are left out."""
        first, codes = problems[0], {problem.code for problem in problems}
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        where = f"{first.path}: " if first.path else ""
        super().__init__(
            f"{where}{first.message}{more}",
            path=first.path,
            fix=first.fix,
            code=first.code if len(codes) == 1 else "config_invalid",
        )
        self.problems: list[Problem] = list(problems[:MOST])


class FoundProblems(ValueError):  # noqa: N818 - it is several
    """How a model's validator reports several problems at once. Their paths are relative to the model."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = list(problems)


def dotted(*parts: object) -> str:
    """The parts of a path joined by dots; parts that hold anything unusual are quoted and shortened."""
    texts = [str(part) for part in parts if part != ""]
    return ".".join(text if _PLAIN.fullmatch(text) else json.dumps(text[:40]) for text in texts)


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names` that `name` was probably meant to be, or ""."""
    return next(iter(difflib.get_close_matches(name[:64], list(names), 1, 0.6)), "")


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """pydantic's findings about a `model` that stands at `prefix`."""
    found: list[Problem] = []
    for item in error.errors(include_url=False)[:MOST]:
        path = ".".join(filter(None, (prefix, dotted(*item["loc"]))))
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, FoundProblems):
            found += [replace(p, path=".".join(filter(None, (path, p.path)))) for p in cause.problems]
        else:
            message, fix, code = _words(item, model)
            found.append(Problem(path, message, fix, code))
    return found[:MOST]


def _words(item: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    kind, said = item["type"], item["msg"]
    if kind == "extra_forbidden":
        known = _names_at(model, item["loc"][:-1])
        guess = nearest(str(item["loc"][-1]), known)
        fix = f"did you mean '{guess}'?" if guess else f"known fields: {', '.join(known)}" if known else "remove it"
        return "there is no such field", fix, "field_unknown"
    if kind == "missing":
        return "this field is missing", "add it", "field_missing"
    if kind == "literal_error":
        guess = nearest(item["input"], re.findall(r"'([^']*)'", said)) if isinstance(item["input"], str) else ""
        wanted = said.removeprefix("Input should be ")
        code = "stage_unknown" if "'transport'" in wanted else "field_invalid"
        return f"must be {wanted}", f"did you mean '{guess}'?" if guess else f"write {wanted}", code
    if said.startswith("Input should be "):
        wanted = said.removeprefix("Input should be ")
        return f"must be {wanted}", f"make it {wanted}", "field_invalid"
    said = said.removeprefix("Value error, ")
    return said[:1].lower() + said[1:], "change the value so that it fits", "field_invalid"


def _names_at(model: type[BaseModel], loc: Sequence[object]) -> list[str]:
    """The names that a JSON object at `loc` inside a `model` may have; none where that cannot be told."""
    place: Any = model
    for step in loc:
        if isinstance(place, type) and issubclass(place, BaseModel):
            place = next((f.annotation for n, f in place.model_fields.items() if step in (n, f.alias)), None)
            if get_args(place)[1:] == (type(None),):  # X | None
                place = get_args(place)[0]
        else:
            place = next(iter(get_args(place)[-1:]), None)
    if isinstance(place, type) and issubclass(place, BaseModel):
        return [field.alias or name for name, field in place.model_fields.items()]
    return []
