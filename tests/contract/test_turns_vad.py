"""Voice activity on real speech, silence and noise."""

import json
from pathlib import Path

import numpy as np
import pytest

from meshag.audio import RATE_HZ, from_floats, read_wav, to_floats
from meshag.errors import ModelError
from meshag.models import catalogue, store
from meshag.settings import Settings
from meshag.turns.vad import WINDOW_SAMPLES, SileroModel, SileroVad

pytestmark = [pytest.mark.contract, pytest.mark.models]

SPEECH = Path(__file__).parents[1] / "data" / "speech"
RECORDINGS = [item["file"] for item in json.loads((SPEECH / "manifest.json").read_text())["items"]]


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel(store.path(catalogue.find(catalogue.DEFAULT_VAD), Settings().cache_dir))


@pytest.mark.parametrize("name", RECORDINGS)
def test_speech_is_speech(model: SileroModel, name: str) -> None:
    found = SileroVad(model).push(read_wav(SPEECH / name)[0])
    assert np.mean(np.array(found) > 0.5) > 0.6


def test_silence_is_not(model: SileroModel) -> None:
    assert max(SileroVad(model).push(bytes(5 * RATE_HZ * 2))) < 0.3


@pytest.mark.parametrize("loudness", [0.001, 0.01, 0.1])
def test_noise_is_mostly_not(model: SileroModel, loudness: float) -> None:
    noise = from_floats(np.random.default_rng(1).normal(0, loudness, 5 * RATE_HZ))
    assert np.mean(np.array(SileroVad(model).push(noise)) < 0.3) > 0.9


def test_pieces_of_any_length_give_the_same(model: SileroModel) -> None:
    pcm = read_wav(SPEECH / RECORDINGS[0])[0]
    whole = SileroVad(model).push(pcm)
    vad = SileroVad(model)
    pieces = [found for start in range(0, len(pcm), 333) for found in vad.push(pcm[start : start + 333])]
    assert pieces == whole
    assert len(whole) == len(pcm) // 2 // WINDOW_SAMPLES


def test_reset_forgets(model: SileroModel) -> None:
    pcm = read_wav(SPEECH / RECORDINGS[0])[0]
    vad = SileroVad(model)
    first = vad.push(pcm)
    vad.push(b"\x01" * 100)
    vad.reset()
    assert vad.push(pcm) == first


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "vad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"vad.onnx cannot be loaded"):
        SileroModel(tmp_path / "vad.onnx")


def test_each_window_is_judged_with_the_end_of_the_one_before(model: SileroModel) -> None:
    pcm = read_wav(SPEECH / RECORDINGS[0])[0][:32_768]
    samples = np.concatenate((np.zeros(64, np.float32), to_floats(pcm)))
    state = np.zeros((2, 1, 128), np.float32)
    wanted = []
    for start in range(0, len(samples) - 64, WINDOW_SAMPLES):
        window = samples[np.newaxis, start : start + 64 + WINDOW_SAMPLES]
        inputs = {"input": window, "state": state, "sr": np.array(RATE_HZ, np.int64)}
        output, state = model.session.run(None, inputs)
        wanted.append(float(output[0, 0]))
    assert SileroVad(model).push(pcm) == wanted
