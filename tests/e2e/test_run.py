"""`meshag run` as a person runs it, with the real models: the answer that was printed is the answer that is heard."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meshag.audio import RATE_HZ, Resampler, read_wav
from meshag.connectors.stt.local import LocalStt, LocalSttOptions
from meshes import free_port_base

pytestmark = [pytest.mark.e2e, pytest.mark.models, pytest.mark.timeout(300)]

BROKEN = """
from meshag.connectors.contracts import {contract}, Options
from meshag.errors import ProviderUnavailable


class Broken({contract}):
    name = "local"
    options = Options

    {method}
        raise ProviderUnavailable("out of order")
        {rest}
"""
METHODS = {
    "stt": ("SttConnector", "async def open(self, options):", ""),
    "llm": ("LlmConnector", "async def reply(self, request):", "yield"),
    "tts": ("TtsConnector", "async def open(self, options):", ""),
}


def run(out: Path, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`meshag run` without a terminal, from a directory of the user's."""
    argv = [sys.executable, "-P", "-m", "meshag", "run", "--no-pull"]
    argv += ["--port-base", str(free_port_base()), "--workers", "stt=1,llm=1,tts=1", "--out", str(out), *words]
    kept = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "VALKEY_URL")}
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**kept, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def replies(said: str) -> str:
    """What the agent said, as it was printed."""
    return " ".join(line.removeprefix("  AGENT  ") for line in said.splitlines() if line.startswith("  AGENT  "))


def words(text: str) -> list[str]:
    """The words of four letters and more."""
    return re.findall(r"[a-z]{4,}", text.lower().replace("'", ""))


async def heard(wav: Path) -> str:
    """What the local recogniser makes of a recording."""
    pcm, rate_hz = read_wav(wav)
    connector = LocalStt()
    stream = await connector.open(LocalSttOptions())
    try:
        stream.feed(Resampler(rate_hz, RATE_HZ).push(pcm, last=True))
        stream.finish()
        async with asyncio.timeout(120):
            return next(iter([item.text async for item in _until_final(stream)][-1:]), "")
    finally:
        await stream.aclose()
        await connector.aclose()


async def _until_final(stream):  # type: ignore[no-untyped-def]
    async for item in stream.heard():
        yield item
        if item.final:
            return


async def test_a_recorded_question_is_answered_aloud(tmp_path: Path) -> None:
    out = tmp_path / "the answer.wav"
    ran = await asyncio.to_thread(run, out, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = ran.stdout
    assert "ask what you can do for your country" in said.lower()
    assert "folder" in said.lower()
    for told in (str(out), "Qwen" if "Qwen" in said else "SmolLM", "docs/models.md", "Try next", " ms"):
        assert told in said, said
    assert "kill -9" not in said  # nothing stays up that could be killed
    pcm, rate_hz = read_wav(out)
    samples = np.frombuffer(pcm, "<i2").astype(float)
    assert len(samples) > rate_hz
    assert np.abs(samples).max() > 1000
    wanted, found = words(replies(said)), set(words(await heard(out)))
    assert wanted
    share = sum(word in found for word in wanted) / len(wanted)
    assert share >= 0.6, f"{share:.0%} of {wanted} in {sorted(found)}"


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
def test_a_provider_that_fails_is_an_exit_status_of_1(stage: str, tmp_path: Path) -> None:
    contract, method, rest = METHODS[stage]
    (tmp_path / "broken.py").write_text(BROKEN.format(contract=contract, method=method, rest=rest))
    spoken = [] if stage == "stt" else ["--ask", "Hello"]
    env = {"MESHAG_CONNECTORS": f"{stage}:local=broken:Broken", "PYTHONPATH": str(tmp_path)}
    ran = run(tmp_path / "answer.wav", *spoken, cwd=tmp_path, **env)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert stage in ran.stdout + ran.stderr
