"""All vendors at once, and what a mesh needs to know of them."""

import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from meshag.models import store
from meshag.models.catalogue import DEFAULT_VAD, find
from meshag.settings import default_cache_dir
from vendors.anthropic import AnthropicStandIn
from vendors.azure import AzureStandIn
from vendors.deepgram import DeepgramStandIn
from vendors.elevenlabs import ElevenLabsStandIn
from vendors.faults import Switch
from vendors.openai import OpenAiStandIn

FLOW = [
    {"from": "transport", "to": "stt", "stream": "audio"},
    {"from": "stt", "to": "llm", "stream": "text"},
    {"from": "llm", "to": "tts", "stream": "text"},
    {"from": "tts", "to": "transport", "stream": "audio"},
]

DOCUMENTED: dict[str, Any] = {
    "config": {
        "system_prompt": "You are a helpful AI assistant that provides clear, concise, and accurate responses. Keep "
        "your responses conversational and natural for voice interaction.",
        "pipeline": {"name": "voice_chat", "flow": FLOW},
        "connectors": {
            "stt": {
                "primary": "openai",
                "fallback": ["deepgram"],
                "config": {
                    "openai": {
                        "model": "whisper-1",
                        "language": "auto",
                        "response_format": "json",
                        "temperature": 0,
                    }
                },
            },
            "llm": {
                "primary": "openai",
                "fallback": ["anthropic"],
                "config": {"openai": {"model": "gpt-4o", "temperature": 0.7, "max_tokens": 1000}},
            },
            "tts": {
                "primary": "elevenlabs",
                "fallback": ["azure"],
                "config": {
                    "elevenlabs": {
                        "model": "eleven_multilingual_v2",
                        "voice": "Rachel",
                        "stability": 0.5,
                        "similarity_boost": 0.8,
                    }
                },
            },
            "transport": {"primary": "websocket", "config": {}},
        },
    },
    "session_name": "my-ai-session",
    "max_participants": 10,
    "enable_recording": True,
    "enable_transcription": True,
}
"""The documented session, unchanged but for its transport."""

PRIMARY = {"stt": "openai", "llm": "openai", "tts": "elevenlabs"}
FALLBACK = {"stt": "deepgram", "llm": "anthropic", "tts": "azure"}


class Town:
    """`async with Town() as town`: every vendor runs; `town.env(dir)` is what a mesh finds them by."""

    def __init__(self) -> None:
        self.openai = OpenAiStandIn(key="sk-openai-secret")
        self.anthropic = AnthropicStandIn(key="sk-ant-secret")
        self.deepgram = DeepgramStandIn(key="dg-secret")
        self.elevenlabs = ElevenLabsStandIn(key="xi-secret")
        self.azure = AzureStandIn(key="azure-secret")
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Town":
        for vendor in (self.openai, self.anthropic, self.deepgram, self.elevenlabs, self.azure):
            await self._stack.enter_async_context(vendor)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def env(self, cache_dir: Path) -> dict[str, str]:
        """What services that use these vendors are told. `cache_dir` gets the voice detector, and no other model."""
        vad = find(DEFAULT_VAD)
        shutil.copytree(store.home(vad, default_cache_dir()), store.home(vad, cache_dir), dirs_exist_ok=True)
        return {
            "MESHAG_CACHE_DIR": str(cache_dir),
            "OPENAI_API_KEY": "sk-openai-secret",
            "OPENAI_BASE_URL": f"{self.openai.url}/v1",
            "ANTHROPIC_API_KEY": "sk-ant-secret",
            "ANTHROPIC_BASE_URL": self.anthropic.url,
            "DEEPGRAM_API_KEY": "dg-secret",
            "DEEPGRAM_BASE_URL": self.deepgram.url,
            "ELEVENLABS_API_KEY": "xi-secret",
            "ELEVENLABS_BASE_URL": self.elevenlabs.url,
            "AZURE_SPEECH_KEY": "azure-secret",
            "AZURE_SPEECH_REGION": "westeurope",
            "AZURE_SPEECH_BASE_URL": self.azure.url,
        }

    @property
    def primaries(self) -> dict[str, Switch]:
        """The faults of the first provider of each stage."""
        return {"stt": self.openai.stt.faults, "llm": self.openai.llm.faults, "tts": self.elevenlabs.faults}

    @property
    def fallbacks(self) -> dict[str, Switch]:
        """The faults of the second one."""
        return {"stt": self.deepgram.faults, "llm": self.anthropic.faults, "tts": self.azure.faults}

    def break_primary(self, stage: str, **faults: Any) -> None:
        """From now on the first provider of a stage does this; one that refuses hangs up on everybody too."""
        self.primaries[stage].set(**faults)
        if faults.get("refuse"):
            (self.elevenlabs if stage == "tts" else self.openai).cut()

    def heal(self) -> None:
        """All is well again."""
        for switch in (*self.primaries.values(), *self.fallbacks.values()):
            switch.set()

    def hear(self, text: str) -> None:
        """What every recogniser makes of the next utterances."""
        self.openai.stt.script.text = self.deepgram.script.text = text

    def answer(self, text: str) -> None:
        """What every model answers, word by word."""
        words = text.split(" ")
        self.openai.llm.reply = self.anthropic.reply = [f"{' ' if i else ''}{word}" for i, word in enumerate(words)]
