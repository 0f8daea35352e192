"""Whatever the libraries below raise, it leaves as an error of ours, and says nothing of what it was about.

The classes are found by walking the libraries' modules: one that a new version brings is tried too.
"""

import asyncio
import builtins
import importlib
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import jwt
import msgspec
import nats.errors
import pytest
from jsonschema import Draft202012Validator

from libraries import SECRET, exceptions_of, invalid, made, named
from meshag.bus import connection, streams
from meshag.bus.connection import Bus
from meshag.connectors import http
from meshag.connectors.llm import local as local_llm
from meshag.connectors.stt import local as local_stt
from meshag.connectors.stt_socket import SocketStream
from meshag.connectors.tts import local as local_tts
from meshag.errors import (
    AuthError,
    BusError,
    ConfigError,
    ConnectorError,
    MeshError,
    ModelError,
    OverloadError,
    ProviderGarbage,
    ProviderTimeout,
    ProviderUnavailable,
    StoreError,
)
from meshag.frames import decode
from meshag.ids import SessionId
from meshag.models import onnx
from meshag.sessions import config, schemas, strict_json, tokens
from meshag.sessions.store import SessionStore

pytestmark = pytest.mark.unit

ON_OUR_SIDE = {
    "PydanticForbiddenQualifier", "PydanticImportError", "PydanticInvalidForJsonSchema",
    "PydanticSchemaGenerationError", "PydanticSerializationError", "PydanticSerializationUnexpectedValue",
    "PydanticUndefinedAnnotation", "PydanticUserError", "SchemaError",
}  # fmt: skip
"""Pydantic's complaints about how a model is written, which no input can bring about."""

OS_ERRORS = sorted(
    {one for one in vars(builtins).values() if isinstance(one, type) and issubclass(one, OSError)}, key=str
)
ASYNCIO, SSL = exceptions_of("asyncio"), exceptions_of("ssl")
CLIENT = [*exceptions_of("aiohttp"), *OS_ERRORS, *SSL, *ASYNCIO, *exceptions_of("msgspec", "json", "yarl")]
NATS = [*exceptions_of("nats"), *OS_ERRORS, *SSL]
VALKEY = [*exceptions_of("valkey"), *OS_ERRORS, *SSL]
MODELS = [*exceptions_of("onnxruntime", "soxr", "xllamacpp", "hibari"), RuntimeError, ValueError, MemoryError]


def silent(error: BaseException, *, of: type[MeshError] | tuple[type[MeshError], ...]) -> None:
    """It is one of ours, and tells nothing of what it came from."""
    assert isinstance(error, of), repr(error)
    for told in (str(error), repr(error)):
        assert "canary" not in told
        assert "4111" not in told


async def raising(error: Exception) -> Any:
    raise error


# -- the providers' HTTP client ---------------------------------------------------------------------------------------


def kind_of(error: Exception) -> type[ConnectorError]:
    """What an exception of the HTTP client has to become."""
    if isinstance(error, TimeoutError):
        return ProviderTimeout
    if isinstance(error, aiohttp.InvalidURL):
        return ProviderGarbage
    if isinstance(error, (OSError, EOFError, aiohttp.ClientError)):
        return ProviderUnavailable
    return ProviderGarbage


@pytest.mark.parametrize("kind", CLIENT, ids=named)
def test_the_http_client(kind: type[Exception]) -> None:
    error = made(kind)
    with pytest.raises(MeshError) as failed, http.failures("acme"):
        raise error
    silent(failed.value, of=kind_of(error))
    assert failed.value.__cause__ is error


def test_a_cancelled_call_stays_cancelled() -> None:
    with pytest.raises(asyncio.CancelledError), http.failures("acme"):
        raise asyncio.CancelledError


def test_a_mistake_of_ours_is_not_taken_for_a_failure_of_the_provider() -> None:
    for mistake in (TypeError, AttributeError, KeyError):
        with pytest.raises(mistake), http.failures("acme"):
            raise mistake(SECRET)


@pytest.mark.parametrize("kind", CLIENT, ids=named)
async def test_a_recogniser_on_a_socket(kind: type[Exception]) -> None:
    class Stream(SocketStream):
        def send_audio(self, pcm: bytes) -> None: ...
        def take(self, message: str) -> None: ...
        def finish(self) -> None: ...
        def reset(self) -> None: ...

    stream = Stream("acme", cast("Any", None))
    await stream._working(lambda: raising(made(kind)))
    with pytest.raises(MeshError) as failed:
        await anext(aiter(stream.heard()))
    silent(failed.value, of=ConnectorError)


# -- NATS -------------------------------------------------------------------------------------------------------------


class Failing:
    """A client of NATS or Valkey that fails at everything in one way."""

    is_connected = True
    is_closed = False
    last_error = None

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return lambda *_, **__: raising(self._error)

    def jetstream(self, **_: Any) -> "Failing":
        return self

    def pipeline(self, **_: Any) -> "Queued":
        return Queued(self._error)

    def register_script(self, _: str) -> Callable[..., Awaitable[Any]]:
        return lambda **_: raising(self._error)


class Queued(Failing):
    """Commands that are sent together."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "execute" else lambda *_, **__: None


BUS: dict[str, Callable[[Bus], Awaitable[Any]]] = {
    "publish": lambda bus: bus.publish("a", b""),
    "request": lambda bus: bus.request("a", b"", timeout_ms=1),
    "subscribe": lambda bus: bus.subscribe("a", lambda _: None),
    "serve": lambda bus: bus.serve("a", lambda _: raising(ValueError())),
    "round_trip_ms": lambda bus: bus.round_trip_ms(),
    "purge": lambda bus: bus.purge("mesh.x.audio.input"),
    "redeclare": lambda bus: bus.redeclare(),
}


@pytest.mark.parametrize("kind", NATS, ids=named)
async def test_the_bus(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ATTEMPTS", 1)
    monkeypatch.setattr(streams.subjects, "stream_of", lambda _: "X")
    bus = Bus("nats://127.0.0.1:1", "test")
    bus._client = cast("Any", Failing(made(kind)))
    for name, call in BUS.items():
        with pytest.raises(MeshError) as failed:
            await call(bus)
        nobody = name == "request" and issubclass(kind, nats.errors.NoRespondersError)
        assert isinstance(failed.value, OverloadError if nobody else BusError), name
        if name != "redeclare":  # it repeats what the server says of itself
            silent(failed.value, of=MeshError)


@pytest.mark.parametrize("kind", NATS, ids=named)
async def test_connecting_to_nats(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    class Client(Failing):
        def __init__(self) -> None:
            super().__init__(made(kind))

        async def close(self) -> None:
            return None

    monkeypatch.setattr(connection, "Client", Client)
    with pytest.raises(BusError) as failed:
        await Bus.connect("nats://me:pass@127.0.0.1:1", name="test", timeout_ms=0)
    assert "me:pass" not in str(failed.value)


@pytest.mark.parametrize("url", ["", ",", "nats://me:pa/ss@h:1", "nats://h:x", "nats://[::1", "http://h:1", "nats://"])
async def test_a_nats_url_that_is_none(url: str) -> None:
    with pytest.raises(BusError, match="NATS_URL") as failed:
        await Bus.connect(url, name="test", timeout_ms=0)
    assert not failed.value.retryable
    assert "pa" not in str(failed.value)


# -- Valkey -----------------------------------------------------------------------------------------------------------

SESSION = SessionId("s_0123456789abcdef")
STORE: dict[str, Callable[[SessionStore], Awaitable[Any]]] = {
    "load": lambda store: store.load(SESSION),
    "lease": lambda store: store.lease(SESSION, "stt"),
    "delete": lambda store: store.delete(SESSION),
    "round_trip_ms": lambda store: store.round_trip_ms(),
    "shared_secret": lambda store: store.shared_secret("x"),
    "keys": lambda store: store.keys.all(),
}


@pytest.mark.parametrize("kind", VALKEY, ids=named)
async def test_the_store(kind: type[Exception]) -> None:
    store = SessionStore(cast("Any", Failing(made(kind))), "127.0.0.1:1")
    for call in STORE.values():
        with pytest.raises(MeshError) as failed:
            await call(store)
        silent(failed.value, of=StoreError)


@pytest.mark.parametrize("kind", VALKEY, ids=named)
async def test_a_store_that_is_not_known_to_be_safe(kind: type[Exception]) -> None:
    with pytest.raises(StoreError):  # it repeats what the server says of itself
        await SessionStore(cast("Any", Failing(made(kind))), "127.0.0.1:1").check_safe()


@pytest.mark.parametrize(
    "url", ["", "valkey://me:pa/ss@h:1", "valkey://h:x", "http://h", "valkey://h:1?socket_timeout=pa", "valkey://[::1"]
)
async def test_a_valkey_url_that_is_none(url: str) -> None:
    with pytest.raises(StoreError, match="VALKEY_URL") as failed:
        await SessionStore.connect(url, timeout_ms=0)
    assert "pa" not in str(failed.value)


@pytest.mark.parametrize(
    "stored",
    [
        SECRET,
        "[]",
        "5",
        '{"version":1}',
        json.dumps({"version": 1, "request": SECRET}),
        json.dumps({"version": 1, "request": {"config": {SECRET: SECRET}}}),
    ],
)
@pytest.mark.parametrize("state", [{}, {"created_at_s": SECRET}, {"room": SECRET}])
async def test_a_session_that_cannot_be_read(stored: str, state: dict[str, str]) -> None:
    await _unreadable(stored, state)


@pytest.mark.parametrize("state", [{"created_at_s": SECRET}, {"ttl_s": SECRET}, {"room": SECRET}])
async def test_a_state_that_cannot_be_read(state: dict[str, str]) -> None:
    await _unreadable('{"version":1,"request":{}}', state)


async def _unreadable(stored: str, state: dict[str, str]) -> None:
    class Holding(Failing):
        def pipeline(self, **_: Any) -> Any:
            async def execute() -> list[Any]:
                return [stored, state]

            return SimpleNamespace(get=lambda _: None, hgetall=lambda _: None, execute=execute)

    with pytest.raises(MeshError) as failed:
        await SessionStore(cast("Any", Holding(ValueError())), "127.0.0.1:1").load(SESSION)
    silent(failed.value, of=StoreError)
    assert failed.value.code == "session_unreadable"


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", exceptions_of("jwt"), ids=named)
def test_tokens(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_none(*_: Any, **__: Any) -> Any:
        raise made(kind)

    monkeypatch.setattr(jwt, "decode", decode_none)
    with pytest.raises(MeshError) as failed:
        tokens.verify(SECRET, SESSION, "x" * 32)
    silent(failed.value, of=AuthError)


@pytest.mark.parametrize("kind", exceptions_of("json"), ids=named)
def test_json(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: Any, **__: Any) -> Any:
        raise made(kind)

    monkeypatch.setattr(strict_json.json, "loads", loads)
    with pytest.raises(MeshError) as failed:
        strict_json.read_json("{}")
    silent(failed.value, of=ConfigError)


@pytest.mark.parametrize("data", [SECRET.encode(), b"\xff" + SECRET.encode(), b"\x81\xa1a" + SECRET.encode(), b""])
def test_frames(data: bytes) -> None:
    with pytest.raises(MeshError) as failed:
        decode(data)
    silent(failed.value, of=MeshError)


def test_pydantic_raises_nothing_else_for_what_it_is_given() -> None:
    known = {"ValidationError", "PydanticCustomError", "PydanticKnownError", "PydanticOmit", "PydanticUseDefault"}
    assert {kind.__name__ for kind in exceptions_of("pydantic", "pydantic_core")} == known | ON_OUR_SIDE


def test_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    error = invalid()

    def validate(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(config.SessionRequest, "model_validate", validate)
    with pytest.raises(MeshError) as failed:
        config.parse_request("{}")
    assert isinstance(failed.value, ConfigError)


@pytest.mark.parametrize("kind", exceptions_of("jsonschema", "referencing"), ids=named)
def test_schemas(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told as problems, not raised: what is wrong with a tool is told to whoever wrote it."""

    def fail(*_: Any, **__: Any) -> Any:
        raise made(kind)

    monkeypatch.setattr(Draft202012Validator, "check_schema", fail)
    (problem,) = schemas.schema_problems({"type": "object"})
    assert problem.code == "tool_schema"
    monkeypatch.setattr(schemas, "_validator", fail)
    assert schemas.value_problems({}, SECRET) == [f"cannot be checked: {kind.__name__}"]


# -- models on this machine -------------------------------------------------------------------------------------------


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.mark.parametrize("kind", MODELS, ids=named)
class TestModels:
    async def test_a_recogniser(self, kind: type[Exception]) -> None:
        def transcribe(*_: Any) -> str:
            raise made(kind)

        engine = local_stt._Engine(cast("Any", SimpleNamespace(transcribe=transcribe)))
        with pytest.raises(MeshError) as failed:
            await engine.final(bytes(32_000))
        engine.close()
        silent(failed.value, of=ConnectorError)

    async def test_a_voice(self, kind: type[Exception], thread: ThreadPoolExecutor) -> None:
        def phonemize(_: str) -> list[str]:
            raise made(kind)

        engine = local_tts._Engine.__new__(local_tts._Engine)
        engine._hibari, engine._thread = SimpleNamespace(phonemize=phonemize), thread
        with pytest.raises(MeshError) as failed:
            await engine.speak(SECRET, 1.0)
        silent(failed.value, of=ConnectorError)

    async def test_a_language_model(self, kind: type[Exception], thread: ThreadPoolExecutor) -> None:
        def handle(*_: Any) -> None:
            raise made(kind)

        engine = local_llm._Engine.__new__(local_llm._Engine)
        engine._server, engine._threads = SimpleNamespace(handle_chat_completions=handle), thread
        engine._slots = [local_llm._Slot(0)]
        engine._choosing, engine._closing = local_llm.threading.Lock(), local_llm.threading.Event()
        with pytest.raises(MeshError) as failed:
            async for _ in engine.write({"messages": []}):
                pass
        silent(failed.value, of=ConnectorError)

    def test_a_file(self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        def session(*_: Any, **__: Any) -> Any:
            raise made(kind)

        (file := tmp_path / "a.onnx").write_bytes(b"")
        monkeypatch.setattr(importlib.import_module("onnxruntime"), "InferenceSession", session)
        with pytest.raises(MeshError) as failed:
            onnx.open_session(file)
        silent(failed.value, of=ModelError)


# -- the test of the test ---------------------------------------------------------------------------------------------


def test_classes_are_found() -> None:
    """What these libraries are known to raise is among what was found."""
    found = {named(kind) for kind in (*CLIENT, *NATS, *VALKEY, *MODELS)}
    assert {
        "aiohttp.client_exceptions.ServerDisconnectedError",
        "aiohttp._websocket.models.WebSocketError",
        "asyncio.exceptions.IncompleteReadError",
        "builtins.ConnectionResetError",
        "msgspec.ValidationError",
        "nats.errors.NoRespondersError",
        "nats.js.errors.ServiceUnavailableError",
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail",
        "ssl.SSLEOFError",
        "valkey.exceptions.OutOfMemoryError",
    } <= found
    assert len(found) > 150
    assert ssl.SSLError in SSL
    assert msgspec.MsgspecError in CLIENT
