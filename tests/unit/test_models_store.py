"""Models on disk: present, missing, damaged, and what is said about it."""

import hashlib
from pathlib import Path

import pytest

from meshag.errors import ModelError
from meshag.models import store
from meshag.models.catalogue import DEFAULT_LLM, File, Model, find

pytestmark = pytest.mark.unit


def toy(*names: str) -> Model:
    files = tuple(File(name, hashlib.sha256(name.encode()).hexdigest(), len(name), ()) for name in names)
    return Model("toy", "A toy", "llm", "MIT", "Made in a test.", files=files)


def put(model: Model, cache: Path) -> None:
    store.home(model, cache).mkdir(parents=True)
    for file in model.files:
        (store.home(model, cache) / file.name).write_text(file.name)


class TestState:
    def test_present(self, tmp_path: Path) -> None:
        model = toy("a.bin", "b.bin")
        put(model, tmp_path)
        assert store.state(model, tmp_path) == store.verify(model, tmp_path) == "present"

    def test_missing(self, tmp_path: Path) -> None:
        assert store.state(toy("a.bin"), tmp_path) == store.verify(toy("a.bin"), tmp_path) == "missing"

    @pytest.mark.parametrize("content", ["short", "longer than it is", None])
    def test_a_file_of_another_size_or_none_is_damage(self, tmp_path: Path, content: str | None) -> None:
        model = toy("a-file.bin", "b.bin")
        put(model, tmp_path)
        file = store.home(model, tmp_path) / "a-file.bin"
        file.unlink() if content is None else file.write_text(content)
        assert store.state(model, tmp_path) == "damaged"
        with pytest.raises(ModelError, match="the model toy is damaged: run `meshag models pull toy`") as caught:
            store.path(model, tmp_path)
        assert caught.value.code == "model_damaged"

    def test_damage_of_equal_size_is_found_by_hashing(self, tmp_path: Path) -> None:
        model = toy("a.bin")
        put(model, tmp_path)
        (store.home(model, tmp_path) / "a.bin").write_text("A.bin")
        assert store.state(model, tmp_path) == "present"
        assert store.verify(model, tmp_path) == "damaged"


class TestPath:
    def test_one_file_is_its_path(self, tmp_path: Path) -> None:
        put(toy("a.bin"), tmp_path)
        assert store.path(toy("a.bin"), tmp_path) == tmp_path / "models" / "toy" / "a.bin"

    def test_several_files_are_their_directory(self, tmp_path: Path) -> None:
        put(toy("a.bin", "b.bin"), tmp_path)
        assert store.path(toy("a.bin", "b.bin"), tmp_path) == tmp_path / "models" / "toy"


class TestLocate:
    def test_a_known_name(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"is missing: run `meshag models pull {DEFAULT_LLM}`"):
            store.locate(DEFAULT_LLM, "llm", tmp_path)

    def test_a_path_of_ones_own(self, tmp_path: Path) -> None:
        own = tmp_path / "own.gguf"
        own.touch()
        assert store.locate(str(own), "llm", tmp_path) == own

    def test_neither(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"neither a known llm model .*{DEFAULT_LLM}.* nor a path"):
            store.locate("gpt-none", "llm", tmp_path)

    def test_a_model_for_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is a model for llm, not for stt"):
            store.locate(find(DEFAULT_LLM).name, "stt", tmp_path)
