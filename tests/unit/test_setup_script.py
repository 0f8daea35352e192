"""scripts/setup.py: what pip is configured to do, uv is told too."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "scripts/setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pips_options_become_uvs_variables(setup_script: ModuleType):
    options = {"index-url": "a", "extra-index-url": "b\nc", "find-links": "d e", "cert": "f", "quiet": "1"}
    assert setup_script.uv_environment(options, {"HOME": "h", "VIRTUAL_ENV": "v"}) == {
        "HOME": "h",
        "UV_DEFAULT_INDEX": "a",
        "UV_INDEX": "b c",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "d,e",
        "SSL_CERT_FILE": "f",
    }


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_what_the_user_told_uv_stays(setup_script: ModuleType, variable: str):
    assert setup_script.uv_environment({"index-url": "pip's"}, {variable: "uv's"}) == {variable: "uv's"}


def test_the_lock_names_no_host_and_hashes_everything():
    lines = (ROOT / "requirements/lock.txt").read_text().splitlines()
    pins = [line for line in lines if line[:1].isalnum()]
    assert len(pins) > 40
    assert all("==" in pin and pin.endswith("\\") for pin in pins)
    assert not [line for line in lines if "://" in line or line.startswith("-")]
