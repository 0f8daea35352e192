"""The parts of Moonshine that need no weights."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.errors import ModelError
from meshag.models.moonshine import LOOP_TIMES, loop_length, read_vocabulary
from meshag.models.onnx import name_bodies, open_session

pytestmark = pytest.mark.unit


class TestLoops:
    @pytest.mark.parametrize("length", [1, 2, 3, 6])
    def test_a_run_that_comes_four_times_is_a_loop(self, length: int) -> None:
        run = list(range(10, 10 + length))
        assert loop_length([1, 5, *run * LOOP_TIMES]) == length
        assert loop_length([1, 5, *run * (LOOP_TIMES - 1)]) == 0

    def test_speech_is_none(self) -> None:
        assert loop_length([1, 7, 7, 7, 8, 9, 7, 8, 9]) == 0

    @given(st.lists(st.integers(3, 9), max_size=60))
    def test_what_is_found_repeats(self, tokens: list[int]) -> None:
        if length := loop_length(tokens):
            assert tokens[-length * LOOP_TIMES :] == tokens[-length:] * LOOP_TIMES


class TestVocabulary:
    def test_lengths_of_one_and_two_bytes(self, tmp_path: Path) -> None:
        long = b"x" * 300
        file = tmp_path / "tokenizer.bin"
        file.write_bytes(b"\x00" + b"\x02hi" + bytes([300 % 128 + 128, 300 // 128]) + long)
        assert read_vocabulary(file) == [b"", b"hi", long]

    @pytest.mark.parametrize("data", [b"\x05abc", b"\x90", b"\x90\x01x"])
    def test_a_cut_off_file_is_refused(self, tmp_path: Path, data: bytes) -> None:
        file = tmp_path / "tokenizer.bin"
        file.write_bytes(data)
        with pytest.raises(ModelError, match=r"tokenizer.bin is damaged"):
            read_vocabulary(file)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"tokenizer.bin cannot be read"):
            read_vocabulary(tmp_path / "tokenizer.bin")


class TestOnnx:
    def test_inner_graphs_get_a_name(self) -> None:
        body = b"\x12\x00" + b"\x0a\x02\x22\x00"
        model = field(7, field(1, field(5, field(6, body))) + field(2, b"main")) + b"\x08\x0a"
        named = b"\x0a\x02\x22\x00" + b"\x12\x04body"
        assert name_bodies(model) == field(7, field(1, field(5, field(6, named))) + field(2, b"main")) + b"\x08\x0a"

    def test_garbage_is_not_a_model(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        for name in ("model.onnx", "model.ort"):
            (tmp_path / name).write_bytes(b"\x00garbage" * 100)
            with pytest.raises(ModelError, match=f"{name} cannot be loaded"):
                open_session(tmp_path / name)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        with pytest.raises(ModelError, match=r"there is no model.onnx"):
            open_session(tmp_path / "model.onnx")


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field; short data only."""
    return bytes([number << 3 | 2, len(data)]) + data
