"""What a session asked for: its JSON as frozen models, read from strangers, changed by patches.

`parse_request` and `patched` raise ConfigProblems, and nothing else, for whatever they are given. What is installed is
not known here: `check_providers` is told.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError

from meshag.sessions.pipeline import Edge, Part, Pipeline, Stream
from meshag.sessions.problems import ConfigProblems, Problem, problems_of
from meshag.sessions.providers import (
    Connectors,
    Lookup,
    ProviderState,
    StageConnectors,
    StageDeadlines,
    provider_problems,
)
from meshag.sessions.strict_json import MAX_BYTES, MAX_DEPTH, read_json
from meshag.sessions.tools import ToolConfig, ToolList
from meshag.subjects import STAGES, Stage

__all__ = [
    "ConfigProblems", "Connectors", "Edge", "Pipeline", "Problem", "ProviderState", "SessionConfig", "SessionRequest",
    "StageConnectors", "StageDeadlines", "Stream", "ToolConfig", "Turns", "can_say", "check_providers", "effective",
    "feeds", "hears", "listeners", "parse_request", "patched", "read_json", "sources", "stages_of",
]  # fmt: skip

PROMPT = (
    "You are a friendly voice assistant. You are heard, not read: answer in one to three short, natural sentences, "
    "without lists, markup or emoji. When something is unclear, ask one short question."
)
"""The default system prompt."""


class Turns(Part):
    """When the caller has begun, paused and finished."""

    vad: Literal["silero", "provider"] = "silero"
    """Who notices voice: silero (a neural detector, here) or provider (the speech recogniser). Default silero."""

    start_ms: int = Field(default=60, ge=0, le=1000)
    """Voice shorter than this is no voice, ms. 0 to 1000. Default 60."""

    end_silence_ms: int = Field(default=700, ge=100, le=5000)
    """Silence that ends the caller's turn, ms. 100 to 5000. Default 700."""

    min_interrupt_ms: int = Field(default=300, ge=0, le=5000)
    """Voice that stops the agent while it speaks, ms. 0 to 5000. Default 300."""

    preroll_ms: int = Field(default=300, ge=0, le=1000)
    """Audio before the voice that the recogniser hears too, ms. 0 to 1000. Default 300."""

    interruptible: bool = True
    """Whether the caller's voice stops the agent. Default true."""


class SessionConfig(Part):
    """How a session talks."""

    system_prompt: str = Field(default=PROMPT, max_length=32_000)
    """What the language model is told first. Up to 32,000 characters. Default: a short prompt for voice."""

    pipeline: Pipeline = Field(default_factory=Pipeline)
    """Who feeds whom. Default: a voice chat."""

    connectors: Connectors = Field(default_factory=Connectors)
    """Who serves each stage. Default: local, over websocket."""

    turns: Turns = Field(default_factory=Turns)
    """When the caller has begun, paused and finished. Default: silence of 700 ms ends a turn."""

    tools: ToolList = Field(default_factory=list)
    """Functions that the model may call, at most 32. Default: none."""

    tools_per_turn: int = Field(default=4, ge=0, le=16)
    """Calls of tools in one turn; then the model has to answer. 0 to 16. Default 4."""


class SessionRequest(Part):
    """The body of `POST /sessions/with-config`."""

    config: SessionConfig = Field(default_factory=SessionConfig)
    """How the session talks. Default: a voice chat on local providers."""

    session_name: str = Field(default="", max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
    """For people. Up to 200 characters on one line. Default empty."""

    max_participants: int = Field(default=2, ge=1, le=1000)
    """Callers at the same time. 1 to 1000. Default 2."""

    enable_recording: bool = False
    """Whether the audio is kept. Default false."""

    enable_transcription: bool = True
    """Whether the caller is shown what was heard. Default true."""

    ttl_s: int | None = Field(default=None, ge=10, le=604_800)
    """How long the session is kept after it was last used, s. 10 to 604,800. Default: the service's own."""


# -- the flow ---------------------------------------------------------------------------------------------------------


def stages_of(config: SessionConfig) -> tuple[Stage, ...]:
    """The stages of the flow without transport, in the order stt, llm, tts."""
    there = {stage for edge in config.pipeline.flow for stage in (edge.from_, edge.to)}
    return tuple(stage for stage in STAGES if stage in there and stage != "transport")


def feeds(config: SessionConfig, stage: Stage) -> list[Edge]:
    """The connections into `stage`, in the order of the flow."""
    return [edge for edge in config.pipeline.flow if edge.to == stage]


def sources(config: SessionConfig, stage: Stage) -> list[Stage]:
    """Who feeds `stage`, each once."""
    return list(dict.fromkeys(edge.from_ for edge in feeds(config, stage)))


def listeners(config: SessionConfig, stage: Stage) -> list[Stage]:
    """Who hears what `stage` says, each once."""
    return list(dict.fromkeys(edge.to for edge in config.pipeline.flow if edge.from_ == stage))


def can_say(config: SessionConfig) -> bool:
    """Whether the agent can be made to say something: its voice is heard, and hears the model or what is typed."""
    speaks = hears(config, "tts", "llm") or hears(config, "tts", "transport", "text")
    return speaks and hears(config, "transport", "tts")


def hears(config: SessionConfig, stage: Stage, speaker: Stage, stream: Stream | None = None) -> bool:
    """Whether `stage` hears `speaker`; with `stream`, whether it hears that from it."""
    return any(edge.from_ == speaker and stream in (None, edge.stream) for edge in feeds(config, stage))


# -- providers --------------------------------------------------------------------------------------------------------


def check_providers(
    request: SessionRequest, lookup: Lookup, names: Callable[[Stage], Sequence[str]] = lambda stage: ()
) -> list[Problem]:
    """What is wrong with the providers of the flow's stages and of transport.

    `lookup(stage, name)` tells what is known of a provider, `names(stage)` which there are. Problems with `warning` do
    not stand in the session's way: another provider of the stage can do the work.
    """
    stages: list[Stage] = [*stages_of(request.config), "transport"]
    return provider_problems(request.config.connectors, stages, lookup, names)


def effective(config: SessionConfig, stage: Stage, is_available: Callable[[str], bool]) -> list[str]:
    """The providers of `stage` that can work, in the order in which they are asked."""
    return [name for name in config.connectors.listed(stage) if is_available(name)]


# -- reading ----------------------------------------------------------------------------------------------------------


def parse_request(body: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> SessionRequest:
    """The request in a body. Raises ConfigProblems: `body_too_large`, `body_not_json`, `field_unknown`, …"""
    return _request(read_json(body, max_bytes=max_bytes, max_depth=max_depth))


def patched(request: SessionRequest, patch: object) -> SessionRequest:
    """`request` changed by a JSON merge patch (RFC 7396), checked like a new one. Raises ConfigProblems.

    `patch` is a parsed JSON value (`read_json`); null takes a field back to its default, a list is replaced whole.
    """
    if not isinstance(patch, Mapping):
        raise ConfigProblems([Problem("", "the patch is not an object", "send a JSON object", "body_not_object")])
    merged = _merged(request.model_dump(mode="json", by_alias=True), patch, MAX_DEPTH)
    try:
        body = json.dumps(merged, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        problem = Problem("", "the patch is not made of JSON values", "send a JSON object", "body_not_json")
        raise ConfigProblems([problem]) from error
    return _request(read_json(body, max_bytes=2 * MAX_BYTES))


def _merged(target: object, patch: object, depth: int) -> object:
    if not isinstance(patch, Mapping):
        return patch
    if depth == 0:
        fix = "send a flatter document"
        raise ConfigProblems([Problem("", f"nested deeper than {MAX_DEPTH}", fix, "body_too_deep")])
    made: dict[str, Any] = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value, depth - 1)
    return made


def _request(value: object) -> SessionRequest:
    if not isinstance(value, dict):
        raise ConfigProblems([Problem("", "the body is not an object", 'send {"config": {…}}', "body_not_object")])
    try:
        return SessionRequest.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigProblems(problems_of(error, SessionRequest)) from None
