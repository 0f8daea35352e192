"""A run: a mesh, callers, a nemesis, and what came of it in a directory.

history.jsonl        see history.py
<session>.mesh       a recording of each session, for `meshag show` and `meshag replay`
logs/                what the services wrote
"""

import asyncio
import os
import random
import shutil
import traceback
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.chaos.caller import ChaosCaller
from faults.chaos.history import History
from faults.chaos.nemesis import STAGES, Nemesis
from faults.chaos.nursery import ForkedMesh
from faults.chaos.providers import CONNECTORS, config
from faults.chaos.proxy import Proxy
from meshag import clock
from meshag.bus.connection import Bus
from meshag.bus.journal import Journal
from meshag.embedded.mesh import Mesh
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import MeshError
from meshag.frames import Frame
from meshag.ids import SessionId
from meshag.recording import file
from meshag.recording.recorder import Recorder
from meshag.sessions.store import PARTS, SessionStore
from meshag.settings import Settings
from meshag.subjects import Stage
from meshes import ROOT, call, free_port_base

LATE_S = 3.0
"""What a session leaves in the journal is purged two seconds after its end."""


@dataclass
class Plan:
    """What a run is."""

    seconds: float
    seed: int
    kinds: dict[str, int] | None = None
    """As `nemesis.KINDS`; None: those."""
    callers: int = 6
    workers: int = 2
    """Of each stage."""
    every_s: float = 0.8
    """From one fault to the next."""
    turns: int = 12
    """Of a session; then the caller has another."""
    mutant: str = ""
    stages: tuple[Stage, ...] = STAGES
    """Whose workers are hit."""


@contextmanager
def mesh_of(plan: Plan, directory: Path) -> Iterator[tuple[Mesh, EmbeddedServers, Proxy]]:
    """Servers, the proxy before Valkey, and services that know it by the proxy alone."""
    with EmbeddedServers(preferred_ports=(0, 0), way="watch") as servers:
        proxy = Proxy(servers.valkey.port).start()
        mesh = ForkedMesh(
            Settings(
                port_base=free_port_base(),
                nats_url=servers.nats_url,
                valkey_url=servers.valkey_url.replace(f":{servers.valkey.port}/", f":{proxy.port}/"),
            ),
            workers={"transport": 1, **dict.fromkeys(("stt", "llm", "tts"), plan.workers)},
            env={
                "MESHAG_CONNECTORS": CONNECTORS,
                "MESHAG_CACHE_DIR": str(directory / "cache"),
                "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("src", "", "tests")),
                "CHAOS_MUTANT": plan.mutant,
            },
        )
        try:
            mesh.start()
            mesh.wait_ready()
            yield mesh, servers, proxy
        finally:
            with suppress(FileNotFoundError, MeshError):
                shutil.copytree(mesh.log_dir, directory / "logs", dirs_exist_ok=True)
            mesh.stop()
            proxy.stop()


def run(plan: Plan, directory: Path) -> Path:
    """Do it. Returns the history; everything of the run is in `directory`, which is made. Blocks."""
    directory.mkdir(parents=True, exist_ok=True)
    history = History(directory / "history.jsonl")
    history.note("run", seed=plan.seed, seconds=plan.seconds, mutant=plan.mutant)
    try:
        with mesh_of(plan, directory) as (mesh, servers, proxy):
            pids = [service.child.pid for service in mesh.services]
            asyncio.run(_Run(plan, directory, history, mesh, servers, proxy).go())
            pids += [service.child.pid for service in mesh.services]
            pids += [servers.nats.pid, servers.valkey.pid]
        history.note("left", processes=[pid for pid in pids if Path(f"/proc/{pid}").exists()])
    finally:
        history.close()
    return history.path


class _Run:
    def __init__(
        self, plan: Plan, directory: Path, history: History, mesh: Mesh, servers: EmbeddedServers, proxy: Proxy
    ) -> None:
        self._plan, self._directory, self._history = plan, directory, history
        self._mesh, self._servers = mesh, servers
        self._callers: dict[str, ChaosCaller] = {}
        self._sessions: list[str] = []
        self._bus: Bus
        self._store: SessionStore
        self._nemesis = Nemesis(
            mesh,
            servers,
            proxy,
            history,
            lambda: {session: dict(caller.owners) for session, caller in self._callers.items()},
            random.Random(f"{plan.seed}/nemesis"),
            plan.kinds,
            plan.every_s,
            plan.stages,
        )

    async def go(self) -> None:
        self._bus = await Bus.connect(self._servers.nats_url, name="chaos")
        self._store = await SessionStore.connect(self._servers.valkey_url)
        over, tended = asyncio.Event(), asyncio.Event()
        tending = asyncio.create_task(self._nemesis.tend(tended))
        try:
            await self._nemesis.mended()
            breaking, calm = asyncio.create_task(self._nemesis.run(over)), asyncio.Event()
            calling = [asyncio.create_task(self._caller(number, calm)) for number in range(1, self._plan.callers + 1)]
            await asyncio.wait([breaking], timeout=self._plan.seconds)
            over.set()
            await breaking
            calm.set()
            await asyncio.gather(*calling)
            await asyncio.sleep(LATE_S)
            await self._look_what_is_left()
        finally:
            tended.set()
            await tending
            await self._store.aclose()
            await self._bus.close()

    # -- callers ------------------------------------------------------------------------------------------------------

    async def _caller(self, number: int, calm: asyncio.Event) -> None:
        """One session after the other, until all is calm."""
        rng, asked = random.Random(f"{self._plan.seed}/{number}"), 0
        await asyncio.sleep(rng.uniform(0, 0.5))
        while not calm.is_set() and asked < 900:
            try:
                created = await self._create(rng)
                asked += await self._session(created, number, number * 1000 + asked + 1, rng, calm)
            except Exception as error:
                self._history.note("crash", error="".join(traceback.format_exception(error))[-1500:])
                asked += self._plan.turns

    async def _create(self, rng: random.Random) -> dict[str, Any]:
        asked = config(llm=rng.choice((0, 5, 20, 40)), tts=rng.choice((0, 20, 60, 90)))
        for _ in range(200):
            try:
                status, body = await asyncio.to_thread(
                    call, self._mesh, "POST", "/sessions/with-config", {"config": asked, "enable_transcription": True}
                )
            except OSError:
                status, body = 0, None
            if status == 201:
                return dict(body)
            await asyncio.sleep(0.2)  # Valkey is away, or a worker is just dying: no call is begun that could not be
        raise AssertionError(f"no session can be made: {status} {body}")

    async def _session(
        self, created: dict[str, Any], number: int, first: int, rng: random.Random, calm: asyncio.Event
    ) -> int:
        session = SessionId(created["session_id"])
        self._history.note("session", session=session, caller=number)
        path = self._directory / f"{session}.mesh"
        with path.open("wb") as recording:
            writer = file.Writer(recording, file.Header(session, recorded_at_ns=clock.wall_ns(), followed=True))
            recorder = Recorder(self._bus, self._store, session, writer)
            following = asyncio.create_task(self._follow(recorder))
            try:
                async with ChaosCaller(created, self._history, rng, silence=number % 2 == 0) as caller:
                    self._callers[session] = caller
                    try:
                        asked = await caller.converse(first, self._plan.turns, calm)
                    finally:
                        del self._callers[session]
                    await self._read_history(session, asked)
                    await self._end(session)
            finally:
                recorder.stop()
                await following
                writer.close("ended")
        self._sessions.append(session)
        await asyncio.to_thread(self._note_frames, path, session)
        return asked

    async def _follow(self, recorder: Recorder) -> None:
        with suppress(MeshError):
            await recorder.follow()

    async def _read_history(self, session: str, turns: int) -> None:
        """What is remembered: it is written a moment after it was heard, or when Valkey is back."""
        body: Any = None
        for _ in range(40):
            with suppress(OSError, urllib.error.URLError):
                _, body = await asyncio.to_thread(call, self._mesh, "GET", f"/sessions/{session}/history")
            if isinstance(body, dict) and len(body.get("turns", ())) >= turns:
                break
            await asyncio.sleep(0.15)
        self._history.note("stored", session=session, turns=body.get("turns") if isinstance(body, dict) else body)

    async def _end(self, session: str) -> None:
        for _ in range(100):
            with suppress(OSError):
                status, _ = await asyncio.to_thread(call, self._mesh, "DELETE", f"/sessions/{session}")
                if status in (200, 204, 404):
                    return
            await asyncio.sleep(0.2)
        self._history.note("crash", error=f"the session {session} cannot be ended")

    def _note_frames(self, path: Path, session: str) -> None:
        """The journal, as it was recorded, without what was said."""
        self._history.note("recording", session=session, path=path.name)
        for framed in file.read(path).frames:
            frame = framed.frame()
            if frame is None or framed.subject == file.AUDIO_INPUT:
                continue
            assert isinstance(frame, Frame)
            self._history.note(
                "frame",
                session=session,
                subject=framed.subject,
                seq=frame.seq,
                epoch=frame.epoch,
                turn=frame.turn,
                kind=type(frame).__name__,
                stored_ms=framed.at_ns / clock.MS,
                stored=framed.sequence > 0,
            )

    # -- after it -----------------------------------------------------------------------------------------------------

    async def _look_what_is_left(self) -> None:
        client = self._store._client
        keys: list[str] = []
        for session in self._sessions:
            names = [f"session:{session}:{part}" for part in PARTS] + [f"remains:{session}"]
            keys += [name for name in names if await client.exists(name)]
            keys += [
                f"{index} {session}"
                for index in ("sessions", "expiring")
                if await client.zscore(index, session) is not None
            ]
        journal, frames = Journal(self._bus), []
        for session in self._sessions[-20:]:
            for kind in file.KINDS:
                subject = f"{kind}.{session}"
                if await journal.newest(subject):
                    frames.append(subject)
        owned = {}
        for service in self._mesh.services:
            body = await asyncio.to_thread(self._mesh._ready_body, service)
            owned[service.name] = body.get("sessions", {}).get("owned", "no answer")
        await asyncio.to_thread(self._nemesis.scrape_all)
        self._history.note("left", keys=keys, frames=frames, owned=owned)
