"""Settings of a process, read from the environment once at its start."""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

STAGE_PORT_OFFSET = {"stt": 0, "llm": 1, "tts": 2, "transport": 3}
"""A stage's first service listens on `port_base` plus this: 8081, 8082, 8083, 8084."""


LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that only this machine reaches."""

_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def default_cache_dir() -> Path:
    """Where model files are kept: `$XDG_CACHE_HOME/meshag`, else `~/.cache/meshag`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshag"


class Settings(BaseSettings):
    """Every setting is an environment variable: `MESHAG_` and the field's name, or the alias shown."""

    model_config = SettingsConfigDict(env_prefix="MESHAG_", extra="ignore", populate_by_name=True)

    nats_url: str = Field(
        "nats://127.0.0.1:4222", validation_alias=AliasChoices("NATS_URL", "MESHAG_NATS_URL", "nats_url")
    )
    """NATS servers, comma separated."""

    nats_replicas: int = Field(1, ge=1, le=5)
    """On how many servers of a NATS cluster each turn message is stored before it counts as stored: 3 in a cluster of
    three, so that any of them may die. Audio is on one."""

    valkey_url: str = Field(
        "valkey://127.0.0.1:6379/0", validation_alias=AliasChoices("VALKEY_URL", "MESHAG_VALKEY_URL", "valkey_url")
    )
    """The Valkey server that holds sessions."""

    host: str = "127.0.0.1"
    """Address the services listen on."""

    public_url: str = ""
    """What callers reach the transport at (`wss://voice.example.com`); empty: `ws://<host>:<port>` of the service."""

    port_base: int = Field(8081, ge=1, le=65000)
    """Port of the first stt service; llm, tts and transport follow it."""

    session_ttl_s: int = Field(3600, ge=10, le=7 * 86400)
    """How long a session outlives its last sign of life, seconds."""

    token_ttl_s: int = Field(300, ge=5, le=86400)
    """How long a caller may take to connect with the token that creating a session returned, seconds."""

    token_secret: str = ""
    """Signs callers' tokens. Empty: one is made and shared through Valkey."""

    capacity: int = Field(100, ge=1, le=100_000)
    """Sessions that one worker takes."""

    heartbeat_ms: int = Field(150, ge=20, le=10_000)
    """How often a worker says that it lives, ms. Silence of four beats counts as death."""

    drain_ms: int = Field(8000, ge=0, le=3_600_000)
    """After SIGTERM a session that finds no quiet moment is handed over in mid-turn after this long, ms."""

    allow_volatile_valkey: bool = False
    """Accept a Valkey that evicts keys or keeps no append-only file. Live sessions can then vanish."""

    cache_dir: Path = Field(default_factory=default_cache_dir)
    """Where model files are kept."""

    local_models: str = ""
    """Local models in place of the default ones, comma separated: names of the catalogue, paths of a .gguf file or of a
    recogniser's directory. The first of a kind answers unless a session names another of them."""

    connectors: str = ""
    """Connectors to load besides the installed ones: `stt:name=module:Class`, comma separated."""

    tool_hosts: str = ""
    """Hosts where sessions' tools may be although they are not public, and that are sent MESHAG_TOOL_ variables, comma
    separated: `localhost:9000,10.1.2.3,*.example.com`. Without a port: all of its ports. Transport refuses sessions by
    it, llm calls by it: set it alike for both."""

    access: Literal["auto", "keys"] = "auto"
    """Who may use the API. `auto`: on this machine everybody, while the whole mesh runs here and listens on a loopback
    address; else holders of API keys. `keys`: those alone, everywhere."""

    one_machine: bool = False
    """The whole mesh runs on this machine. `meshag up` and `meshag run` say so to their services."""

    cors_origins: str = ""
    """Sites whose pages may use the API, comma separated: `https://app.example.com,http://localhost:3000`."""

    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENAI_API_KEY")
    """Turns the providers `openai` on. Like every key: from the environment only, never in a session's JSON."""

    openai_base_url: str = Field("https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL")
    """Another server that speaks OpenAI's protocol, with its `/v1`."""

    deepgram_api_key: SecretStr = Field(SecretStr(""), validation_alias="DEEPGRAM_API_KEY")
    """Turns the provider `deepgram` on."""

    deepgram_base_url: str = Field("https://api.deepgram.com", validation_alias="DEEPGRAM_BASE_URL")
    """Deepgram's address, or that of a server of one's own; http(s) or ws(s)."""

    anthropic_api_key: SecretStr = Field(SecretStr(""), validation_alias="ANTHROPIC_API_KEY")
    """Turns the provider `anthropic` on."""

    anthropic_base_url: str = Field("https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL")
    """Anthropic's address, without `/v1`."""

    elevenlabs_api_key: SecretStr = Field(SecretStr(""), validation_alias="ELEVENLABS_API_KEY")
    """Turns the provider `elevenlabs` on."""

    elevenlabs_base_url: str = Field("https://api.elevenlabs.io", validation_alias="ELEVENLABS_BASE_URL")
    """ElevenLabs' address; http(s)."""

    azure_speech_key: SecretStr = Field(SecretStr(""), validation_alias="AZURE_SPEECH_KEY")
    """With a region, turns the provider `azure` on."""

    azure_speech_region: str = Field("", validation_alias="AZURE_SPEECH_REGION", pattern=r"^[a-z0-9-]{0,40}$")
    """The region of the Azure resource: `westeurope`."""

    azure_speech_base_url: str = Field("", validation_alias="AZURE_SPEECH_BASE_URL")
    """Another address than the region's own."""

    daily_api_key: SecretStr = Field(SecretStr(""), validation_alias="DAILY_API_KEY")
    """With a domain, turns the transport `daily` on."""

    daily_domain: str = Field("", validation_alias="DAILY_DOMAIN", pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")
    """The Daily domain without `.daily.co`: rooms are at `https://<domain>.daily.co/<room>`."""

    daily_base_url: str = Field("https://api.daily.co/v1", validation_alias="DAILY_BASE_URL")
    """Daily's REST API, with its `/v1`."""

    daily_webhook_secret: SecretStr = Field(SecretStr(""), validation_alias="DAILY_WEBHOOK_SECRET")
    """The `hmac` of the webhook at Daily, as Daily gave it (base64): lets `POST /webhooks/daily` in."""

    webhook_url: str = ""
    """Where session events are POSTed to; empty: nowhere. Set it alike for every transport service."""

    webhook_secret: SecretStr = SecretStr("")
    """Signs them: `whsec_` and the base64 of the key, or any text."""

    webhook_events: str = ""
    """Which ones, comma separated; empty: all."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, else JSON."""

    @property
    def public_socket_url(self) -> str:
        """`public_url` as a WebSocket's address, without a slash at its end; empty where none is set."""
        return re.sub("^http", "ws", self.public_url.rstrip("/"))

    def port(self, stage: str, index: int = 0) -> int:
        """The port of a stage's service number `index` on this machine: 8081, 8091, 8101, …"""
        return self.port_base + STAGE_PORT_OFFSET[stage] + 10 * index

    @property
    def keys_required(self) -> bool:
        """Whether the API wants a key."""
        return self.access == "keys" or not self.one_machine or self.host not in LOOPBACK

    @property
    def origins(self) -> frozenset[str]:
        """The sites of `cors_origins`, as browsers write them."""
        return frozenset(filter(None, (origin.strip() for origin in self.cors_origins.split(","))))

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, text: str) -> str:
        for origin in filter(None, (part.strip() for part in text.split(","))):
            if not _ORIGIN.fullmatch(origin) or origin.endswith(_DEFAULT_PORTS[origin.partition(":")[0]]):
                raise ValueError(
                    f"'{origin}' is not a site as browsers write it: scheme, host in lower case and port, without the "
                    "default port, a path or a *, as in https://app.example.com"
                )
        return text


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
