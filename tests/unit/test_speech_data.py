"""The recordings: each one described, unharmed, in the format of the bus, attributed."""

import hashlib
import json
import wave
from pathlib import Path

import pytest

import meshag

pytestmark = pytest.mark.unit

PLACES = (Path(meshag.__file__).parent / "data/speech", Path(__file__).parents[1] / "data/speech")


@pytest.mark.parametrize("place", PLACES, ids=["meshag", "tests"])
def test_every_recording_is_what_its_manifest_says(place: Path):
    manifest = json.loads((place / "manifest.json").read_text())
    items = {item["file"]: item for item in manifest["items"]}
    assert set(items) == {path.name for path in place.glob("*.wav")}
    assert manifest["count"] == len(items) > 0
    licences = (place / "LICENSE.md").read_text()
    for name, item in items.items():
        path = place / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == item["sha256"], name
        with wave.open(str(path)) as audio:
            assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (16_000, 1, 2), name
            assert audio.getnframes() / 16_000 == pytest.approx(item["duration_s"], abs=0.01), name
        assert item["text"].endswith((".", "?"))
        if item["license"] == "CC-BY-SA-3.0":
            assert "Allison Smith" in item["attribution"]
            assert "CC BY-SA 3.0" in licences
        else:
            assert item["license"].startswith("Public Domain")
