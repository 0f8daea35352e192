"""Conversations in real time with a mesh whose providers are the vendors of a town."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from meshag.audio import RATE_HZ, read_wav
from meshag.embedded.mesh import Mesh
from meshag.testing import TestCaller
from meshes import ROOT, call, logs, start_mesh
from standins import eventually
from vendors.town import DOCUMENTED, Town

RECORDINGS = ROOT / "tests" / "data" / "speech"
UTTERANCE = read_wav(RECORDINGS / "asterisk_en_pls-hold-while-try.wav")[0][: 2 * RATE_HZ * 7 // 10]
"""0.7 s of somebody speaking."""

QUICK = {"end_silence_ms": 300}
"""A session's `turns`: no pause of this caller is longer, so that nobody need wait for a longer one."""

OUT_HZ = 24_000
ONE_EACH = {"stt": 1, "llm": 1, "tts": 1}


@asynccontextmanager
async def mesh_in(town: Town, tmp_path: Path, workers: dict[str, int] | None = None, **env: str) -> AsyncIterator[Mesh]:
    """A mesh that has the vendors' keys and none of the test's instant providers."""
    told = {"MESHAG_CONNECTORS": "", **town.env(tmp_path / "cache"), **env}
    mesh = await asyncio.to_thread(start_mesh, tmp_path, workers=workers or ONE_EACH, **told)
    try:
        yield mesh
    except BaseException:
        print(logs(mesh))
        raise
    finally:
        await asyncio.to_thread(mesh.stop)


async def asked(mesh: Mesh, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One HTTP exchange. The vendors answer from this very loop, so it must not stand still meanwhile."""
    return await asyncio.to_thread(call, mesh, method, path, body)


async def created(mesh: Mesh, **connectors: dict[str, Any]) -> dict[str, Any]:
    """The documented session; `connectors`: more about a stage, `tools` about the functions."""
    request = copy.deepcopy(DOCUMENTED)
    config: Any = request["config"]
    for name, more in connectors.items():
        if name in config["connectors"]:
            config["connectors"][name] |= more
        else:
            config[name] = more
    status, body = await asked(mesh, "POST", "/sessions/with-config", request)
    assert status == 201, body
    return dict(body)


async def states(mesh: Mesh) -> dict[str, dict[str, str]]:
    """Each stage's providers: closed, open or off."""
    _, body = await asked(mesh, "GET", "/providers")
    return {stage: {name: told["state"] for name, told in found.items()} for stage, found in body["providers"].items()}


async def all_closed(mesh: Mesh) -> bool:
    """Whether every provider is in use."""
    return all(state == "closed" for found in (await states(mesh)).values() for state in found.values())


async def mended(town: Town, mesh: Mesh) -> None:
    """All is well again, and known to be."""
    town.heal()
    for stage, found in (await states(mesh)).items():
        for name, state in found.items():
            if state != "closed":
                await asked(mesh, "PUT", f"/providers/{stage}/{name}", {"state": "on"})
    await eventually("every provider is in use", lambda: all_closed(mesh))


class Conversation:
    """Turn after turn of one caller."""

    def __init__(self, town: Town, caller: TestCaller) -> None:
        self.town, self.caller = town, caller
        self.turn = 0
        self.audio = b""
        """What was heard in the last turn."""

    async def take_turn(
        self, answer: str = "", *, question: str = "", pcm: bytes = UTTERANCE, timeout_s: float = 30
    ) -> list[dict[str, Any]]:
        """Ask, and hear the answer out. Returns the events of the turn."""
        self.turn += 1
        self.town.hear(question or f"Where is my order number {self.turn}?")
        self.town.answer(answer or f"Order {self.turn} left.")
        heard_before = len(self.caller.audio)
        speaking = asyncio.create_task(self.speak(pcm))
        try:
            await self.caller.wait_for("speech_ended", turn=self.turn, interrupted=False, timeout_s=timeout_s)
            await asyncio.sleep(0.1)  # events may overtake the last of the audio
        finally:
            speaking.cancel()
        self.audio = bytes(self.caller.audio[heard_before:])
        return [event for event in self.caller.events if event.get("turn") == self.turn]

    async def speak(self, pcm: bytes = UTTERANCE) -> None:
        """Speak, and be silent until cancelled."""
        await self.caller.play(pcm)
        while True:
            await self.caller.speak(bytes(640))

    def check(self, turn: list[dict[str, Any]]) -> dict[str, str]:
        """The turn was heard, answered and spoken, and nobody had to apologise. Returns who served stt and llm."""
        question, answer = f"Where is my order number {self.turn}?", f"Order {self.turn} left."
        assert [event["text"] for event in turn if event["type"] == "turn_ended"] == [question]
        assert [event for event in turn if event["type"] == "error"] == []
        assert self.caller.reply(self.turn).strip() == answer
        samples = np.frombuffer(self.audio, "<i2").astype(float)
        assert len(samples) > OUT_HZ // 4
        assert np.abs(samples).max() > 1_000
        heard = [event for event in turn if event["type"] == "transcript" and event["final"]]
        return {"stt": heard[-1]["provider"], "llm": models(turn)[-1]}


def models(turn: list[dict[str, Any]]) -> list[str]:
    """Whose models answered in a turn, one after the other; not who bridged a wait."""
    started = [event["provider"] for event in turn if event["type"] == "reply_started"]
    return [name for name in started if name != "meshag"]
