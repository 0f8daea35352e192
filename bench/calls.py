"""Added latency and CPU per call, providers answering at once.

All four services, nats-server and valkey-server run as in production; the callers are in a process of their own.
Each call, in real time over its WebSocket: an utterance of 2 s, an answer of 3 s, a pause of 0.5 s, again; every fourth
answer is interrupted after a second. Start and end of speech are markers inside the audio, so that no time of voice
activity detection is in the figures.

    added_ms         last frame of the utterance sent by the caller → first agent audio received by the caller
    cpu_s_per_call_s CPU seconds of services and servers for each second of each call (the callers' process not counted)
    floor            the same audio over bare NATS and nothing else: three hops of a 640-byte message, measured in the
                     same run, and the ratio to it
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import instant
from meshag import clock
from meshag.commands.common import ask, loop_factory
from meshag.embedded.mesh import Mesh
from meshag.embedded.ports import is_free
from meshag.settings import Settings
from meshag.stages.playout import STEP_MS

ROOT = Path(__file__).parent.parent
UTTERANCE_FRAMES, PAUSE_FRAMES, INTERRUPT_EVERY = 100, 25, 4
ANSWER_BOUND_S = 5.0
FRAME_S = 0.02


def main(words: list[str]) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench calls", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--calls", default="1,10,25,50", help="numbers of concurrent calls (default 1,10,25,50)")
    parser.add_argument("--seconds", type=float, default=24.0, help="length of each level (default 24)")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.client:
        print(json.dumps(_client(json.loads(args.client))))
        return
    levels = [int(part) for part in args.calls.split(",")]
    print(json.dumps(measure(levels, args.seconds), indent=2))


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def measure(levels: list[int], seconds: float) -> dict[str, Any]:
    """Every level on a fresh mesh of one worker a stage."""
    found = []
    for calls in levels:
        print(f"{calls} calls for {seconds:.0f} s …", file=sys.stderr, flush=True)
        found.append(_level(calls, seconds))
    return {
        "benchmark": "calls",
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "levels": found,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _port_base() -> int:
    return next(base for base in range(21081, 60000, 100) if all(is_free("127.0.0.1", base + i) for i in range(4)))


def _level(calls: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as empty:
        env = {
            "MESHAG_CONNECTORS": instant.CONNECTORS,
            "PYTHONPATH": str(ROOT),
            "MESHAG_CACHE_DIR": empty,
            "MESHAG_LOG_LEVEL": "error",
            "MESHAG_CAPACITY": str(max(100, calls)),
        }
        one = {"stt": 1, "llm": 1, "tts": 1}
        mesh = Mesh(Settings(port_base=_port_base()), workers=one, env=env)  # type: ignore[arg-type]
        mesh.preferred_ports = (0, 0)
        try:
            mesh.start()
            mesh.wait_ready()
            return _measured(mesh, calls, seconds)
        finally:
            mesh.stop()


def _measured(mesh: Mesh, calls: int, seconds: float) -> dict[str, Any]:
    assert mesh.servers is not None
    pids = {service.stage: service.child.pid for service in mesh.services}
    pids |= {"nats-server": mesh.servers.nats.pid, "valkey-server": mesh.servers.valkey.pid}
    hop_us = asyncio.run(_hop_us(mesh.servers.nats_url))
    config = instant.config()
    created = [ask("POST", f"{mesh.url}/sessions/with-config", {"config": config}) for _ in range(calls)]
    rooms = [f"{one['room_url']}?token={one['token']}" for one in created]
    job = json.dumps({"rooms": rooms, "seconds": seconds})
    rss_before = {name: _rss_kb(pid) for name, pid in pids.items()}
    client = subprocess.Popen(
        [sys.executable, "-m", "bench", "calls", "--client", job],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert client.stdout is not None
    client.stdout.readline()  # every caller is connected
    before, began_s = _cpu(pids), clock.monotonic_s()
    client.stdout.readline()  # and has hung up
    after, passed_s = _cpu(pids), clock.monotonic_s() - began_s
    rss_after = {name: _rss_kb(pid) for name, pid in pids.items()}
    result = json.loads(client.stdout.read())
    client.wait()
    cpu = {name: (after[name] - before[name]) / (passed_s * calls) for name in pids}
    added = sorted(result["added_ms"])
    floor_ms = 3 * hop_us / 1000
    return {
        "calls": calls,
        "turns": len(added),
        "missed": result["missed"],
        "added_ms": _percentiles(added),
        "interrupt_ms": _percentiles(sorted(result["interrupt_ms"])),
        "pace_jitter_ms": _percentiles(sorted(result["jitter_ms"])),
        "cpu_s_per_call_s": round(sum(cpu.values()), 5),
        "cpu_s_per_call_s_by_process": {name: round(value, 5) for name, value in cpu.items()},
        "cores_busy": round(sum(cpu.values()) * calls, 3),
        "rss_kb_per_call": round(sum(rss_after[n] - rss_before[n] for n in pids) / calls),
        "floor": {
            "nats_hop_us_p50": round(hop_us, 1),
            "three_hops_ms": round(floor_ms, 3),
            "added_p50_to_floor": round(median(added) / floor_ms, 2) if added else None,
        },
    }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    at = {name: min(len(values) - 1, int(len(values) * part)) for name, part in _PARTS.items()}
    return {name: round(values[index], 2) for name, index in at.items()}


_PARTS = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def _cpu(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: _cpu_s(pid) for name, pid in pids.items()}


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    shown = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    parts = [float(part) for part in shown.strip().replace("-", ":").split(":")]
    return sum(part * 60**i for i, part in enumerate(reversed(parts)))


def _rss_kb(pid: int) -> int:
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(shown.strip() or 0)


async def _hop_us(url: str) -> float:
    """One hop over bare NATS: half of a ping-pong between two connections, p50."""
    import nats

    here, there = await nats.connect(url), await nats.connect(url)

    async def pong(message: Any) -> None:
        await message.respond(message.data)

    await there.subscribe("bench.hop", cb=pong)
    await there.flush()
    took = []
    for _ in range(500):
        began_ns = clock.monotonic_ns()
        await here.request("bench.hop", instant.SILENCE)
        took.append((clock.monotonic_ns() - began_ns) / 2000)
    await here.close()
    await there.close()
    return median(took)


# -- the callers' process ---------------------------------------------------------------------------------------------


@dataclass
class _Results:
    added_ms: list[float] = field(default_factory=list)
    interrupt_ms: list[float] = field(default_factory=list)
    jitter_ms: list[float] = field(default_factory=list)
    missed: int = 0


@dataclass
class _Call:
    """One caller."""

    socket: Any
    results: _Results
    began_s: float = 0.0
    asked_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    ended: bool = False
    interrupted_ns: int = 0
    turn: int = 0
    sent: int = 0

    async def read(self) -> None:
        """Note when audio comes."""
        async for message in self.socket:
            if isinstance(message.data, bytes):
                self._on_audio(clock.monotonic_ns())
            elif '"speech_ended"' in message.data:
                self.ended = True
                if '"interrupted":true' in message.data and self.interrupted_ns:
                    self.results.interrupt_ms.append((clock.monotonic_ns() - self.interrupted_ns) / 1e6)
                    self.interrupted_ns = 0

    def _on_audio(self, now_ns: int) -> None:
        if self.asked_ns and not self.first_ns:
            self.first_ns = now_ns
            self.results.added_ms.append((now_ns - self.asked_ns) / 1e6)
        elif self.last_ns and self.first_ns:
            self.results.jitter_ms.append(max(0.0, (now_ns - self.last_ns) / 1e6 - STEP_MS))
        self.last_ns = now_ns

    async def live(self, until_s: float) -> None:
        """Ask, listen, pause, again. Frames leave every 20 ms whatever happens, as from a microphone."""
        while clock.monotonic_s() < until_s:
            self.turn += 1
            self.ended, self.asked_ns, self.first_ns, self.last_ns = False, 0, 0, 0
            await self.send(instant.speech_frame(instant.START))
            for _ in range(UTTERANCE_FRAMES - 2):
                await self.send(instant.SPEECH)
            await self.send(instant.speech_frame(instant.END, self.turn))
            self.asked_ns = clock.monotonic_ns()
            await self.listen()

    async def listen(self) -> None:
        """Hear the answer out, or interrupt it; then pause."""
        for frame in range(int(ANSWER_BOUND_S / FRAME_S)):
            if self.ended:
                break
            if self.turn % INTERRUPT_EVERY == 0 and frame == 50:
                self.interrupted_ns = clock.monotonic_ns()
                await self.socket.send_str('{"type":"interrupt"}')
            await self.send(instant.SILENCE)
        if not self.first_ns or not self.ended:
            self.results.missed += 1
        for _ in range(PAUSE_FRAMES):
            await self.send(instant.SILENCE)

    async def send(self, frame: bytes) -> None:
        """One frame, when it is due."""
        self.sent += 1
        await asyncio.sleep(max(0.0, self.began_s + self.sent * FRAME_S - clock.monotonic_s()))
        await self.socket.send_bytes(frame)


def _client(job: dict[str, Any]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_callers(job["rooms"], job["seconds"]))


async def _callers(rooms: list[str], seconds: float) -> dict[str, Any]:
    import gc

    import aiohttp

    results = _Results()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        calls = [_Call(await http.ws_connect(room, compress=0), results) for room in rooms]
        readers = [asyncio.create_task(call.read()) for call in calls]
        await asyncio.sleep(1)
        gc.collect()
        gc.freeze()
        print("connected", flush=True)
        until_s = clock.monotonic_s() + seconds

        async def live(i: int, call: _Call) -> None:
            await asyncio.sleep(5.5 * i / len(calls) + i * 7.37 % 20 / 1000)  # callers do not all speak at once
            call.began_s = clock.monotonic_s()
            await call.live(until_s)

        await asyncio.gather(*(live(i, call) for i, call in enumerate(calls)))
        print("done", flush=True)
        for call in calls:
            await call.socket.close()
        await asyncio.gather(*readers, return_exceptions=True)
    return {
        "added_ms": results.added_ms,
        "interrupt_ms": results.interrupt_ms,
        "jitter_ms": results.jitter_ms,
        "missed": results.missed,
    }
