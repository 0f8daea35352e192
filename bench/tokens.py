"""CPU per streamed token: our language-model connectors against the vendors' own SDKs.

Both talk to the same stand-in for the vendor, which runs in a process of its own, one after the other in this process:
only what the client computes is counted (CPU time of this process, all threads), from the request to the end of the
answer. The loop is the services' own. Medians of several rounds, the two clients taking turns.

    burst   2,000 tokens, sent back to back
    paced   300 tokens, 2 ms apart, as a fast model writes them
    ratio   ours to the SDK's; below 1, ours costs less
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import ClientSession

from meshag.commands.common import loop_factory
from meshag.connectors.contracts import LlmConnector, LlmRequest, Message, TextDelta

ROOT = Path(__file__).parent.parent
KEY = "sk-test"
PACE_S = 0.002
BURST, PACED = "burst", "paced"
TOKENS = {BURST: 2_000, PACED: 300}

Client = Callable[[], AsyncIterator[str]]
"""Asks once, and gives the tokens of the answer."""


def main(words: list[str]) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench tokens", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default 7)")
    rounds = parser.parse_args(words).rounds
    found: dict[str, Any] = {
        "benchmark": "tokens",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "cpu_us_per_token": {},
    }
    for vendor, module, clients in (("openai", "openai_llm", _OpenAi), ("anthropic", "anthropic", _Anthropic)):
        print(f"{vendor} …", file=sys.stderr, flush=True)
        with _stand_in(module) as url, asyncio.Runner(loop_factory=loop_factory()) as runner:
            found["cpu_us_per_token"][vendor] = runner.run(_vendor(url, clients, rounds))
    print(json.dumps(found, indent=2))


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


@contextmanager
def _stand_in(module: str) -> Iterator[str]:
    """The vendor's stand-in as a process; its address."""
    command = [sys.executable, "-m", f"vendors.{module}", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


async def _vendor(url: str, clients: Any, rounds: int) -> dict[str, Any]:
    found = {}
    async with ClientSession() as http:
        for way, count in TOKENS.items():
            tokens = [f" word{number}" for number in range(count)]
            await http.post(f"{url}/__reply", json={"tokens": tokens, "calls": []})
            await http.post(f"{url}/__faults", json={"slow_s": PACE_S if way == PACED else 0.0})
            found[way] = await _compared(clients, url, count, rounds)
    return found


async def _compared(clients: Any, url: str, count: int, rounds: int) -> dict[str, float]:
    async with clients(url) as (ours, sdk):
        took: dict[str, list[float]] = {"ours": [], "sdk": []}
        for number in range(rounds + 1):
            for name, client in (("ours", ours), ("sdk", sdk)):
                began_s, seen = time.process_time(), 0
                async for _ in client():
                    seen += 1
                if seen != count:
                    raise SystemExit(f"{name}: {seen} tokens instead of {count}")
                if number:  # the first one warms up
                    took[name].append((time.process_time() - began_s) / count * 1e6)
    medians = {name: median(values) for name, values in took.items()}
    return {
        **{name: round(value, 2) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["sdk"], 3),
    }


class _Clients:
    """A connector of ours and the vendor's SDK, both ready to ask."""

    connector: LlmConnector
    sdk: Any

    async def __aenter__(self) -> tuple[Client, Client]:
        return self.ours, self.theirs

    async def __aexit__(self, *_: object) -> None:
        await self.connector.aclose()
        await self.sdk.close()

    async def ours(self) -> AsyncIterator[str]:
        request = LlmRequest("", [Message("user", "Hello")], self.connector.options(max_tokens=4_000))
        async for event in self.connector.reply(request):
            if isinstance(event, TextDelta):
                yield event.text

    def theirs(self) -> AsyncIterator[str]:
        raise NotImplementedError


class _OpenAi(_Clients):
    def __init__(self, url: str) -> None:
        import openai

        from meshag.connectors.llm.openai import OpenAiLlm

        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=f"{url}/v1")
        self.connector = OpenAiLlm()
        self.sdk = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1")

    async def theirs(self) -> AsyncIterator[str]:
        stream = await self.sdk.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=4_000,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text


class _Anthropic(_Clients):
    def __init__(self, url: str) -> None:
        import anthropic

        from meshag.connectors.llm.anthropic import AnthropicLlm

        os.environ.update(ANTHROPIC_API_KEY=KEY, ANTHROPIC_BASE_URL=url)
        self.connector = AnthropicLlm()
        self.sdk = anthropic.AsyncAnthropic(api_key=KEY, base_url=url)

    async def theirs(self) -> AsyncIterator[str]:
        stream = await self.sdk.messages.create(
            model="claude-haiku-4-5", max_tokens=4_000, messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text
