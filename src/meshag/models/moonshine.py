"""Moonshine speech recognition on plain onnxruntime: an encoder, a decoder that writes token by token, a vocabulary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meshag.audio import RATE_HZ
from meshag.errors import ModelError
from meshag.models.onnx import open_session

BOS, EOS = 1, 2

TOKENS_PER_S = 6.5
"""More tokens than this per second of audio are no speech: the decoder has lost its way."""

TOKENS_SPARE = 8

LOOP_TOKENS = 24
"""How far back a repetition is looked for."""

LOOP_TIMES = 4
"""A run of tokens that comes this often in a row is a loop, not speech."""


class Moonshine:
    """A loaded model. Calls block, use no shared state and may come from any thread."""

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """Load `encoder_model`, `decoder_model_merged` (.ort or .onnx) and `tokenizer.bin`. Raises ModelError."""
        self._encoder = _session(directory, "encoder_model", threads)
        self._decoder = _session(directory, "decoder_model_merged", threads)
        self._vocabulary = read_vocabulary(directory / "tokenizer.bin")
        self._encoder_inputs = {item.name for item in self._encoder.get_inputs()}
        self._decoder_inputs = {item.name for item in self._decoder.get_inputs()}
        self._empty_past = {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
            for item in self._decoder.get_inputs()
            if item.name.startswith("past_key_values")
        }
        self._present = [item.name for item in self._decoder.get_outputs()][1:]

    def transcribe(self, samples: npt.NDArray[np.float32], stop: Callable[[], bool] = lambda: False) -> str | None:
        """The words in 16 kHz mono float samples, one utterance of at most half a minute.

        `stop` is asked before every token; when it says so, the work is dropped and None returned.
        """
        audio = samples[np.newaxis, :]
        mask = np.ones(audio.shape, np.int64)
        inputs: dict[str, npt.NDArray[Any]] = {"input_values": audio}
        if "attention_mask" in self._encoder_inputs:
            inputs["attention_mask"] = mask
        hidden = self._encoder.run(None, inputs)[0]
        past = dict(self._empty_past)
        tokens = [BOS]
        for step in range(int(len(samples) / RATE_HZ * TOKENS_PER_S) + TOKENS_SPARE):
            if stop():
                return None
            inputs = {
                "input_ids": np.array([[tokens[-1]]], np.int64),
                "encoder_hidden_states": hidden,
                "use_cache_branch": np.array([step > 0]),
                **past,
            }
            if "encoder_attention_mask" in self._decoder_inputs:
                inputs["encoder_attention_mask"] = mask
            logits, *present = self._decoder.run(None, inputs)
            token = int(logits[0, -1].argmax())
            if token == EOS:
                break
            tokens.append(token)
            if loop := loop_length(tokens):
                del tokens[-loop * (LOOP_TIMES - 1) :]
                break
            for name, value in zip(self._present, present, strict=True):
                # What the decoder sees of the encoder is worked out at the first step and stays.
                if step == 0 or ".decoder." in name:
                    past[name.replace("present", "past_key_values")] = value
        return self._text(tokens[1:])

    def _text(self, tokens: list[int]) -> str:
        out = bytearray()
        for token in tokens:
            piece = self._vocabulary[token] if token < len(self._vocabulary) else b""
            if len(piece) == 6 and piece.startswith(b"<0x"):
                out.append(int(piece[3:5], 16))
            elif not (len(piece) > 2 and piece.startswith(b"<") and piece.endswith(b">")):
                out += piece
        return out.decode("utf-8", "ignore").replace("\u2581", " ").strip()


def loop_length(tokens: list[int]) -> int:
    """How many tokens the run has that the end repeats LOOP_TIMES times; 0: it repeats none."""
    for length in range(1, LOOP_TOKENS // LOOP_TIMES + 1):
        run = tokens[-length:]
        if len(tokens) > length * LOOP_TIMES and tokens[-length * LOOP_TIMES :] == run * LOOP_TIMES:
            return length
    return 0


def read_vocabulary(file: Path) -> list[bytes]:
    """The pieces of a `tokenizer.bin`: each a length (two bytes from 128 on) and its bytes. Raises ModelError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}") from error
    pieces = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            if at >= len(data):
                raise ModelError(f"{file.name} is damaged")
            length = data[at] * 128 + length - 128
            at += 1
        if at + length > len(data):
            raise ModelError(f"{file.name} is damaged")
        pieces.append(data[at : at + length])
        at += length
    return pieces


def _session(directory: Path, name: str, threads: int) -> Any:
    ort = directory / f"{name}.ort"
    return open_session(ort if ort.is_file() else directory / f"{name}.onnx", threads)
