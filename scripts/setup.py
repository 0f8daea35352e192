"""Makes .venv and installs into it what requirements/lock.txt pins, then this project, editable.

uv does it when it can be had, pip when not. Done already for these files, this place and this Python: at once.
The standard library only; run by setup.sh in the project's directory.
"""

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin/python"
STAMP = VENV / ".meshag-setup"
LOCK = Path("requirements/lock.txt")
INPUTS = (LOCK, Path("pyproject.toml"), Path("scripts/setup.py"))

UV_OF_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
"""pip's options to the environment variables with which uv is told the same."""

UV_OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def fingerprint() -> str:
    """Changes when .venv must be filled anew: other pins, another place, another Python."""
    about = hashlib.sha256()
    for path in INPUTS:
        about.update(path.read_bytes())
    about.update(str(Path.cwd()).encode())
    about.update((VENV / "pyvenv.cfg").read_bytes())
    return about.hexdigest()


def ready() -> bool:
    try:
        return STAMP.read_text() == fingerprint() and works(PYTHON)
    except OSError:
        return False


def works(python: Path) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    return python.exists() and run_quietly([str(python), "-c", check]) == 0


def home_of(python: Path | str) -> str:
    """The installation that a Python belongs to, and its version."""
    code = "import sys; print(sys.base_prefix, sys.version)"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout


def run_quietly(argv: list[str]) -> int:
    return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def make_venv(chosen: bool) -> None:
    """A .venv that works and, if one was chosen, of that Python."""
    if works(PYTHON):
        if not chosen or home_of(PYTHON) == home_of(sys.executable):
            return
        say(".venv is of another Python: making it anew")
    if VENV.exists():
        shutil.rmtree(VENV)
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"making .venv with Python {version} ({sys.executable})")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return
    # Debian ships venv without the pip that goes inside: put this Python's own pip to work.
    shutil.rmtree(VENV, ignore_errors=True)
    if run_quietly([sys.executable, "-m", "venv", "--without-pip", str(VENV)]) != 0:
        sys.exit(
            f"setup: this Python cannot make a .venv (Debian, Ubuntu: install python3-venv):\n{made.stderr.strip()}"
        )
    say("installing pip into .venv")
    if subprocess.run([sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-q", "pip"]).returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit("setup: this Python has neither ensurepip nor pip (Debian, Ubuntu: install python3-venv)")


def pip_options() -> dict[str, str]:
    """pip's configuration: its files, then its environment variables, the later ones winning."""
    told = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    options: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            try:
                options[option] = str(ast.literal_eval(value))
            except (SyntaxError, ValueError):
                continue
    return options


def uv_environment(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with what pip is told, said to uv. What the user told uv stays."""
    told = dict(environment)
    for option, variable in UV_OF_PIP.items():
        value = options.get(option)
        if value and UV_OLDER_NAMES.get(variable, variable) not in environment:
            separator = "," if variable == "UV_FIND_LINKS" else " "
            told.setdefault(variable, separator.join(value.split()))
    if "UV_INDEX" in told:
        told.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip does; the lock's hashes make it safe
    told.pop("VIRTUAL_ENV", None)
    return told


def find_uv() -> list[str] | None:
    """uv in .venv, else on PATH, else installed into .venv."""
    inside = [str(PYTHON), "-m", "uv"]
    if run_quietly([*inside, "--version"]) == 0:
        return inside
    if outside := shutil.which("uv"):
        return [outside]
    say("installing uv into .venv")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
    return inside if subprocess.run(pip, check=False).returncode == 0 else None


def install(pip: list[str], environment: Mapping[str, str]) -> bool:
    """The pins, then the project. `pip` is the command up to `install`."""
    project = ["--no-deps", "--no-build-isolation", "--editable", "."]
    for what in (["--require-hashes", "--requirement", str(LOCK)], project):
        if subprocess.run([*pip, "install", *what], env=dict(environment), check=False).returncode != 0:
            return False
    return True


def install_with_uv() -> bool:
    uv = find_uv()
    if uv is None:
        say("uv cannot be had")
        return False
    say("installing the pinned packages and MeshAG with uv")
    environment = uv_environment(pip_options(), os.environ)
    if install([*uv, "pip"], {**environment, "UV_PYTHON": str(PYTHON)}):
        return True
    say("uv failed")
    return False


def main() -> int:
    chosen = "--chosen" in sys.argv[1:]
    if ready() and (not chosen or home_of(PYTHON) == home_of(sys.executable)):
        return 0
    make_venv(chosen)
    STAMP.unlink(missing_ok=True)
    if not install_with_uv():
        say("installing the pinned packages and MeshAG with pip: this takes a few minutes")
        if not install([str(PYTHON), "-m", "pip"], os.environ):
            sys.exit("setup: failed; see the messages above")
    STAMP.write_text(fingerprint())
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
