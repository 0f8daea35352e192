"""The catalogue is well-formed: every model can be found, fetched and checked."""

import re

import pytest

from meshag.errors import ModelError
from meshag.models.catalogue import CATALOGUE, DEFAULT_LLM, DEFAULT_STT, DEFAULT_VAD, SMALL_LLM, Model, find

pytestmark = pytest.mark.unit

SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
class TestEveryModel:
    def test_is_pinned_by_hash_and_size(self, model: Model) -> None:
        for pinned in (*model.archives, *model.files):
            assert SHA256.fullmatch(pinned.sha256)
            assert pinned.size_bytes > 0

    def test_takes_its_files_from_its_own_archives(self, model: Model) -> None:
        packages = [archive.package for archive in model.archives]
        assert len(set(packages)) == len(packages)
        assert {part.package for file in model.files for part in file.parts} == set(packages)

    def test_writes_plain_file_names(self, model: Model) -> None:
        names = [file.name for file in model.files]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[\w.-]+", name) and not name.startswith(".") for name in (model.name, *names))

    def test_says_where_it_comes_from_and_what_it_allows(self, model: Model) -> None:
        assert model.title
        assert model.provenance.endswith(".")
        assert model.licence in ("MIT", "Apache-2.0")

    def test_is_fetched_or_in_a_package(self, model: Model) -> None:
        assert bool(model.package) != bool(model.archives and model.files)


def test_names_are_unique() -> None:
    names = [model.name for model in CATALOGUE]
    assert len(set(names)) == len(names)


def test_the_defaults_are_there_for_what_they_are_needed() -> None:
    assert [find(name).purpose for name in (DEFAULT_STT, DEFAULT_LLM, SMALL_LLM, DEFAULT_VAD)] == [
        "stt",
        "llm",
        "llm",
        "vad",
    ]


def test_qwen_is_the_file_that_its_makers_published() -> None:
    assert find(DEFAULT_LLM).files[0].sha256.startswith("1d961463")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"known: .*moonshine-base-en"):
        find("moonshine")
