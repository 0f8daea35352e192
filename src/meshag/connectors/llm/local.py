"""Language model on this machine: llama.cpp inside the process, for any GGUF file.

A reply runs in a thread of its own and hands its pieces to the event loop. A few are written at once, more wait their
turn. Reading is the slow part, so what the model has read of a conversation is kept for its next turn.
"""

import asyncio
import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from meshag.connectors.contracts import (
    PATIENT,
    Availability,
    LlmConnector,
    LlmEvent,
    LlmRequest,
    Options,
    ReplyDone,
    TextDelta,
)
from meshag.errors import ConnectorError, ModelError, ProviderGarbage, ProviderRejected
from meshag.models import store
from meshag.models.catalogue import CATALOGUE, DEFAULT_LLM, SMALL_LLM, find
from meshag.models.engines import Engines
from meshag.models.offered import check_offered, offered
from meshag.models.progress import megabytes
from meshag.settings import Settings

SLOTS = 6
"""Conversations whose reading is kept, and replies written at once."""

CONTEXT_TOKENS = 2560
"""What the model reads and writes for one reply, at most. The oldest messages are left out when they do not fit."""

REUSE_TOKENS = 32
"""A run of at least this many tokens that was read before is not read again when what stands before it has changed."""

MOST_THREADS = 8
"""llama.cpp computes on half of the cores, and on no more than these: its threads wait for each other, so that one
which has to share its core with the stage next door holds up all of them."""

BYTES_PER_TOKEN = 3
"""A cautious guess; English has four letters to the token."""

MESSAGE_BYTES = 8 * BYTES_PER_TOKEN
"""What a chat template adds to a message."""

SPARE_TOKENS = 16

FIT_TIMES = 4
"""How often a conversation is shortened before it is given up."""


class LocalLlmOptions(Options):
    """What a session may ask of the local language model."""

    model: str | None = Field(None, min_length=1, max_length=4096)
    """One of those that the mesh offers (MESHAG_LOCAL_MODELS). Default: the first of them."""

    temperature: float = Field(0.3, ge=0.0, le=2.0)
    """0: always the likeliest word. Small models wander above 0.5."""

    max_tokens: int = Field(160, ge=1, le=2048)
    """Length of an answer, tokens: about three quarters of a word each."""

    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    """The same seed, conversation and model give the same answer on an otherwise idle model, only slower: the whole
    conversation is then read anew for each answer. Default: chance."""


class LocalLlm(LlmConnector):
    """A GGUF model in this process."""

    name = "local"
    shared = False
    options = LocalLlmOptions
    deadlines = PATIENT

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._cache_dir = cache_dir or Settings().cache_dir
        self._engines = Engines(_Engine)

    def availability(self) -> Availability:
        """Whether llama.cpp and the default model, or the small one in its place, are there."""
        if not find_spec("xllamacpp"):
            return Availability(False, "xllamacpp is not installed: pip install 'meshag[local]'")
        name = self._default()
        known = next((model for model in CATALOGUE if model.name == name), None)
        if known is None:
            there = Path(name).expanduser().is_file()
            return Availability(there, name if there else f"MESHAG_LOCAL_MODELS names {name}, which is not there")
        model = known
        found = store.state(model, self._cache_dir)
        if found != "present":
            return Availability(False, f"the model {model.name} is {found}: {store.remedy(model)}")
        detail = f"{model.title}, {megabytes(model.size_bytes)}"
        if model.name != offered("llm")[0]:
            detail += f", in place of {DEFAULT_LLM}, which answers better: {store.remedy(find(DEFAULT_LLM))}"
        return Availability(True, detail)

    def model(self, options: Options) -> str:
        """The name of the model that answers, for people."""
        assert isinstance(options, LocalLlmOptions)
        wanted = options.model or self._default()
        return next((model.title for model in CATALOGUE if model.name == wanted), Path(wanted).stem)

    def _default(self) -> str:
        """The model that answers unless a session names another; the small one where only that is there."""
        name = offered("llm")[0]
        if name == DEFAULT_LLM and not store.is_present(find(name), self._cache_dir):
            return SMALL_LLM if store.is_present(find(SMALL_LLM), self._cache_dir) else name
        return name

    def accept(self, options: Options) -> None:
        """Only models that were loaded at the start: llama.cpp stops the whole process while it loads another."""
        assert isinstance(options, LocalLlmOptions)
        if options.model is not None:
            check_offered(options.model, "llm")

    async def warm(self) -> None:
        """Load the models that are offered and let each write one token."""
        for model in (self._default(), *offered("llm")[1:]):
            async for _ in self.reply(LlmRequest("Be brief.", (), LocalLlmOptions(model=model, max_tokens=1))):
                pass

    async def aclose(self) -> None:
        """Stop all generation and free the models."""
        for engine in self._engines.clear():
            await asyncio.to_thread(engine.close)

    async def reply(self, request: LlmRequest) -> AsyncIterator[LlmEvent]:
        """The answer as it is written. Closing the iterator stops the writing at the next token.

        Raises ModelError (no such model), ProviderRejected (the model refuses the prompt), ProviderGarbage,
        ConnectorError.
        """
        options = request.options
        assert isinstance(options, LocalLlmOptions)
        name = options.model or self._default()
        engine = await self._engines.get(store.locate(name, "llm", self._cache_dir))
        room = CONTEXT_TOKENS - min(options.max_tokens, CONTEXT_TOKENS // 2) - SPARE_TOKENS
        for _ in range(FIT_TIMES):
            writing = engine.write(_body(fit(request, room), options))
            try:
                async for event in writing:
                    yield event
                return
            except _TooLong as error:
                room = int(room * error.share)
            finally:
                await writing.aclose()
        raise ProviderRejected("the conversation does not fit into the model's context", code="context_too_long")


class _TooLong(Exception):  # noqa: N818 - a signal between these two classes, never seen outside
    """The prompt has more tokens than the context. `share` of it would fit."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share


def fit(request: LlmRequest, room_tokens: int) -> list[dict[str, str]]:
    """The conversation as llama.cpp wants it; a last message of the assistant is what the model goes on with.

    Where it does not fit, the oldest messages are left out, and many at once: a beginning that changed at every turn
    would have to be read anew at every turn. The system prompt and the last message stay, cut when they are enormous.
    """
    room = room_tokens * BYTES_PER_TOKEN
    system = _clean(request.system, room // 3, head=True)
    room = max(room - len(system.encode()) - len(request.said.encode("utf-8", "replace")), room // 3)
    texts = [_clean(message.text, room // 2) for message in request.messages]
    sizes = [len(text.encode()) + MESSAGE_BYTES for text in texts]
    step = room // 2
    left_out = -(-max(sum(sizes) - room, 0) // step) * step
    kept = []
    start = 0
    for number, (message, text, size) in enumerate(zip(request.messages, texts, sizes, strict=True), 1):
        if start >= left_out or number == len(texts):
            kept.append({"role": message.role, "content": text})
        start += size
    if system:
        kept.insert(0, {"role": "system", "content": system})
    if request.said:
        kept.append({"role": "assistant", "content": request.said})
    return kept


def _clean(text: str, most_bytes: int, *, head: bool = False) -> str:
    """Text that is UTF-8, holds no control words of a chat template and is not longer than that."""
    data = text.replace("<|", "< |").replace("\0", "").encode("utf-8", "replace")
    most_bytes = max(most_bytes, BYTES_PER_TOKEN)
    return (data[:most_bytes] if head else data[-most_bytes:]).decode("utf-8", "ignore")


def _body(messages: list[dict[str, str]], options: LocalLlmOptions) -> dict[str, Any]:
    body = {
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": 0.9,
        "repeat_penalty": 1.1,
        # Numbers come out a little differently when the prompt was read in other portions: with a seed, all in one.
        "cache_prompt": options.seed is None,
    }
    if options.seed is not None:
        body["seed"] = options.seed
    return body


@dataclass(slots=True)
class _Slot:
    """A place of the model that holds one conversation."""

    number: int
    texts: set[str] = field(default_factory=set)
    """The messages that were read there last."""
    used: int = 0
    """When: a count of replies."""
    busy: bool = False


class _Engine:
    """A loaded model and the threads that replies run in."""

    def __init__(self, path: Path) -> None:
        """Load a GGUF file; blocks. Raises ModelError."""
        try:
            import xllamacpp
        except ImportError as error:
            raise ModelError("xllamacpp is not installed: run `pip install 'meshag[local]'`") from error
        if not path.is_file():
            raise ModelError(f"{path.name} is not a file; a .gguf file is needed")
        threads = max(1, min(MOST_THREADS, (os.cpu_count() or 2) // 2))
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = SLOTS
        params.n_ctx = SLOTS * CONTEXT_TOKENS
        params.kv_unified = False
        params.cache_ram_mib = 0
        params.n_cache_reuse = REUSE_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        params.warmup = params.fit_params = False
        params.verbosity = -1
        params.ui = False
        params.n_threads_http = 1
        # llama.cpp's server always listens somewhere. Here it does so where nobody can reach it: behind a key that
        # is told to nobody, on a socket in a private directory that is removed right away.
        with tempfile.TemporaryDirectory(prefix="meshag-") as directory:
            params.hostnames = [f"{directory}/llm.sock"]
            params.api_keys = [secrets.token_hex()]
            try:
                self._server = xllamacpp.Server(params)
            except Exception as error:
                raise ModelError(f"{path.name} cannot be loaded: it is damaged, or no GGUF file") from error
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="llm")
        self._slots = [_Slot(number) for number in range(SLOTS)]
        self._choosing = threading.Lock()
        self._closing = threading.Event()

    async def write(self, body: dict[str, Any]) -> AsyncGenerator[LlmEvent, None]:
        """Run one request. Raises _TooLong before the first event."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        stop = threading.Event()

        def put(item: dict[str, Any] | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody listens
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def receive(chunk: dict[str, Any]) -> bool:
            put(chunk)
            return stop.is_set() or self._closing.is_set()

        def run() -> None:
            try:
                if not stop.is_set():
                    with self._slot(body["messages"]) as slot:
                        self._server.handle_chat_completions({**body, "id_slot": slot}, receive)
                put(None)
            except Exception as error:
                put(error)

        running = self._threads.submit(run)
        try:
            reason = ""
            usage: dict[str, int] = {}
            while (item := await arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise ConnectorError(f"the local model failed: {type(item).__name__}") from item
                if "error" in item:
                    raise _explained(item["error"])
                usage = item.get("usage") or usage
                for choice in item.get("choices", ()):
                    if text := choice["delta"].get("content"):
                        yield TextDelta(text)
                    reason = choice["finish_reason"] or reason
            if reason not in ("stop", "length"):
                raise ProviderGarbage("the local model ended without a reason")
            yield ReplyDone(
                "stop" if reason == "stop" else "length",
                input_tokens=usage.get("prompt_tokens", 0),
                output_tokens=usage.get("completion_tokens", 0),
            )
        finally:
            stop.set()
            running.cancel()

    @contextlib.contextmanager
    def _slot(self, messages: list[dict[str, str]]) -> Iterator[int]:
        """The free slot that knows most of the conversation, else the one that was not used for longest.

        llama.cpp's own choice gives a new conversation the slot of another one that has the same system prompt.
        """
        texts = {message["content"] for message in messages if message["role"] != "system"}
        with self._choosing:
            free = [slot for slot in self._slots if not slot.busy]
            chosen = max(free, key=lambda slot: (sum(map(len, slot.texts & texts)), -slot.used))
            chosen.busy = True
            chosen.texts = texts
            chosen.used = max(slot.used for slot in self._slots) + 1
        try:
            yield chosen.number
        finally:
            chosen.busy = False

    def close(self) -> None:
        """Stop all replies and free the model; blocks until the running ones have noticed."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        del self._server


def _explained(error: dict[str, Any]) -> Exception:
    """What a server's error means. Its message may quote the prompt, so it stays out."""
    if error.get("type") == "exceed_context_size_error":
        return _TooLong(0.9 * error["n_ctx"] / max(error["n_prompt_tokens"], 1))
    code = int(error.get("code", 500))
    if 400 <= code < 500:
        return ProviderRejected(f"the local model refuses the request ({code})")
    return ConnectorError(f"the local model failed ({code})")
