"""The rules that tests/conftest.py and .ci/run hold every run to, broken on purpose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def run_pytest(place: Path, module: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "tests/conftest.py", place)
    (place / "test_it.py").write_text(module)
    (place / "pytest.ini").write_text("[pytest]\nmarkers =\n  unit: x\n")
    environment = {name: value for name, value in os.environ.items() if name != "MESHAG_TEST_RUN"}
    environment["PYTHONPATH"] = os.pathsep.join(
        (str(ROOT / "tests"), str(ROOT))
    )  # conftest.py loads its plugin from there
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(place)]
    return subprocess.run(argv, cwd=place, capture_output=True, text=True, check=False, env=environment)


def test_a_test_without_a_kind_is_refused(tmp_path: Path):
    ran = run_pytest(tmp_path, "def test_it(): pass\n")
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "declare the kind" in ran.stderr
    assert "test_it.py" in ran.stderr


def test_a_test_with_a_kind_runs(tmp_path: Path):
    ran = run_pytest(tmp_path, "import pytest\npytestmark = pytest.mark.unit\ndef test_it(): pass\n")
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    "leave",
    [
        'subprocess.Popen(["sleep", "60"])',
        'subprocess.Popen(["true"])',  # not reaped
        'subprocess.run(["sh", "-c", "sleep 60 &"])',  # no longer a descendant
    ],
)
def test_a_process_that_a_test_leaves_behind_fails_the_run(tmp_path: Path, leave: str):
    module = (
        f"import pytest, subprocess\npytestmark = pytest.mark.unit\ndef test_it():\n    global p\n    p = {leave}\n"
    )
    ran = run_pytest(tmp_path, module)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED
    assert "tests left processes behind" in ran.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("recipe", "code"), [("@true", 0), ("@false", 2), ("@sleep 60 & echo started $$!", 1)])
def test_ci_leaves_nothing_running(tmp_path: Path, recipe: str, code: int):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(f"test:\n\t{recipe}\n")
    with (tmp_path / "out").open("w") as out:  # a pipe would stay open as long as what is left behind
        alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        ran = subprocess.run([str(tmp_path / ".ci/run")], stdout=out, stderr=out, check=False, timeout=30, env=alone)
    said = (tmp_path / "out").read_text()
    assert ran.returncode == code, said
    if "started" in said:
        assert f"left running: pid {said.split()[1]}, now killed" in said
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", said.split()[1]], capture_output=True, text=True, check=False
        )
        assert state.stdout.strip()[:1] in ("", "Z")
