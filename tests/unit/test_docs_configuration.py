"""docs/configuration.md says what is so."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import BaseModel

from meshag.sessions.config import (
    ConfigProblems,
    Edge,
    Pipeline,
    SessionConfig,
    SessionRequest,
    StageConnectors,
    StageDeadlines,
    Turns,
    parse_request,
    patched,
)

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```json {kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_request_is_accepted_and_the_five_pipelines_are_there() -> None:
    names = [parse_request(block).config.pipeline.name for block in blocks("request")]
    assert {"voice_chat", "text_chat", "transcription", "announcement", "captions"} <= set(names)


def test_no_json_block_goes_unchecked() -> None:
    kinds = re.findall(r"^```json *(\w*)$", PAGE, re.MULTILINE)
    assert set(kinds) == {"request", "patch", "refused", "problems"}


def test_the_patch_is_accepted() -> None:
    (block,) = blocks("patch")
    assert patched(SessionRequest(), json.loads(block)).config.turns.end_silence_ms == 500


def test_the_refused_request_has_the_problems_that_the_page_shows() -> None:
    (refused,), (shown,) = blocks("refused"), blocks("problems")
    with pytest.raises(ConfigProblems) as caught:
        parse_request(refused)
    assert [asdict(problem) for problem in caught.value.problems] == [
        {**problem, "warning": False} for problem in json.loads(shown)
    ]


@pytest.mark.parametrize(
    "model", [SessionRequest, SessionConfig, Pipeline, Edge, StageConnectors, StageDeadlines, Turns]
)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert re.search(rf"^\| `(?:flow\[\]\.)?{field.alias or name}` \|", PAGE, re.MULTILINE), name
        assert field.description, name


def test_every_code_is_explained() -> None:
    sources = (Path(__file__).parents[2] / "src" / "meshag" / "sessions").glob("*.py")
    text = "".join(
        path.read_text()
        for path in sources
        if path.stem in ("config", "pipeline", "problems", "providers", "strict_json")
    )
    codes = set(re.findall(r'"((?:body|field|flow|provider|providers|stage|text|number|duplicate)_[a-z_]+)"', text))
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()
