"""What every speech-to-text connector promises.

A new provider is one more line in `IMPLEMENTATIONS`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from meshag.audio import FRAME_BYTES, RATE_HZ, read_wav
from meshag.connectors.contracts import Heard, SttConnector, SttStream
from meshag.connectors.stt.local import LocalStt, LocalSttOptions
from meshag.errors import ConnectorError, ModelError
from wording import errors, words

pytestmark = [pytest.mark.contract, pytest.mark.models]

IMPLEMENTATIONS: dict[str, Callable[[], SttConnector]] = {"local": LocalStt}

SPEECH = Path(__file__).parents[1] / "data" / "speech"
RECORDINGS = {item["file"]: item["text"] for item in json.loads((SPEECH / "manifest.json").read_text())["items"]}
NOBODY = "asterisk_en_vm-nobodyavail.wav"
HOLD = "asterisk_en_pls-hold-while-try.wav"
SILENCE_500_MS = bytes(RATE_HZ)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def connector(request: pytest.FixtureRequest) -> Iterator[SttConnector]:
    made = IMPLEMENTATIONS[request.param]()
    availability = made.availability()
    assert availability.available, f"{availability.detail} (or run pytest -m 'not models')"
    asyncio.run(made.warm())
    yield made
    asyncio.run(made.aclose())


def pcm_of(name: str) -> bytes:
    pcm, rate_hz = read_wav(SPEECH / name)
    assert rate_hz == RATE_HZ
    return pcm


@asynccontextmanager
async def opened(connector: SttConnector, **options: object) -> AsyncIterator[SttStream]:
    stream = await connector.open(connector.options(**options))
    try:
        yield stream
    finally:
        await stream.aclose()


def feed(stream: SttStream, pcm: bytes, step: int = FRAME_BYTES) -> None:
    for start in range(0, len(pcm), step):
        stream.feed(pcm[start : start + step])


async def until_finals(stream: SttStream, count: int) -> list[Heard]:
    found: list[Heard] = []
    async with asyncio.timeout(60):
        async for heard in stream.heard():
            found.append(heard)
            if sum(item.final for item in found) == count:
                break
    return found


async def until_idle(stream: SttStream) -> None:
    """Until the local recogniser has heard what was fed."""
    async with asyncio.timeout(30):
        while not stream._jobs.empty() or stream._working:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)


class TestSttConnector:
    async def test_hears_what_was_said(self, connector: SttConnector) -> None:
        wrong = total = 0
        async with opened(connector) as stream:
            for name in RECORDINGS:
                feed(stream, pcm_of(name))
                stream.finish()
            finals = [item.text for item in await until_finals(stream, len(RECORDINGS)) if item.final]
        for said, heard in zip(RECORDINGS.values(), finals, strict=True):
            wrong += errors(said, heard)
            total += len(words(said))
        assert wrong / total <= 0.1, list(zip(RECORDINGS.values(), finals, strict=True))

    async def test_one_final_for_each_finish_in_order(self, connector: SttConnector) -> None:
        async with opened(connector) as stream:
            for name in (NOBODY, HOLD):
                feed(stream, pcm_of(name))
                stream.finish()
            stream.finish()
            finals = [item.text for item in await until_finals(stream, 3) if item.final]
        assert "nobody" in words(finals[0])
        assert "hold" in words(finals[1])
        assert finals[2] == ""

    async def test_interims_grow_to_the_final(self, connector: SttConnector) -> None:
        async with opened(connector) as stream:
            pcm = pcm_of(NOBODY)
            for start in range(0, len(pcm), FRAME_BYTES):
                stream.feed(pcm[start : start + FRAME_BYTES])
                await asyncio.sleep(0.02)
            stream.finish()
            found = await until_finals(stream, 1)
        assert [item.final for item in found] == [False] * (len(found) - 1) + [True]
        assert len(found) > 1
        assert all(item.text for item in found)
        assert errors(RECORDINGS[NOBODY], found[-1].text) <= 1

    @pytest.mark.parametrize("pcm", [b"", bytes(640), SILENCE_500_MS * 4], ids=["nothing", "20 ms", "silence"])
    async def test_no_words_are_an_empty_final(self, connector: SttConnector, pcm: bytes) -> None:
        async with opened(connector) as stream:
            feed(stream, pcm)
            stream.finish()
            assert (await until_finals(stream, 1))[-1] == Heard("", final=True)

    async def test_reset_forgets_what_was_fed(self, connector: SttConnector) -> None:
        async with opened(connector) as stream:
            feed(stream, pcm_of(NOBODY))
            stream.reset()
            feed(stream, pcm_of(HOLD))
            stream.finish()
            found = await until_finals(stream, 1)
        assert errors(RECORDINGS[HOLD], found[-1].text) <= 1
        assert not any("nobody" in words(item.text) for item in found)

    @pytest.mark.parametrize("step", [333, 335, 100_000])
    async def test_pieces_may_have_any_length(self, connector: SttConnector, step: int) -> None:
        async with opened(connector) as stream:
            pcm = pcm_of(HOLD)
            for start in range(0, len(pcm), step):
                stream.feed(pcm[start : start + step])
                await asyncio.sleep(0)
            stream.finish()
            assert errors(RECORDINGS[HOLD], (await until_finals(stream, 1))[-1].text) <= 1

    async def test_feeding_never_waits(self, connector: SttConnector) -> None:
        async with opened(connector) as stream:
            for _ in range(3):
                feed(stream, pcm_of(NOBODY))
                await asyncio.sleep(0.05)
                before = time.process_time()
                feed(stream, pcm_of(NOBODY))
                stream.finish()
                assert time.process_time() - before < 0.5

    async def test_sessions_do_not_hear_each_other(self, connector: SttConnector) -> None:
        async def one(name: str) -> str:
            async with opened(connector) as stream:
                feed(stream, pcm_of(name))
                stream.finish()
                return (await until_finals(stream, 1))[-1].text

        heard = await asyncio.gather(*map(one, (NOBODY, HOLD, NOBODY)))
        for name, text in zip((NOBODY, HOLD, NOBODY), heard, strict=True):
            assert errors(RECORDINGS[name], text) <= 1

    async def test_closing_ends_what_is_heard_and_may_be_repeated(self, connector: SttConnector) -> None:
        stream = await connector.open(connector.options())
        feed(stream, pcm_of(NOBODY))
        await stream.aclose()
        await stream.aclose()
        async with asyncio.timeout(5):
            assert not [item async for item in stream.heard() if item.final]

    async def test_warming_twice_costs_nothing(self, connector: SttConnector) -> None:
        before = time.process_time()
        await connector.warm()
        assert time.process_time() - before < 1.0

    def test_unknown_options_are_refused(self, connector: SttConnector) -> None:
        with pytest.raises(ValidationError):
            connector.options.model_validate({"no_such_option": 1})


class TestLocalStt:
    @pytest.fixture
    def local(self, connector: SttConnector) -> LocalStt:
        if not isinstance(connector, LocalStt):
            pytest.skip("for the local connector only")
        return connector

    async def test_a_pause_lets_the_final_come_at_once(self, local: LocalStt, monkeypatch: pytest.MonkeyPatch) -> None:
        async with opened(local, interim_ms=0) as stream:
            feed(stream, pcm_of(NOBODY) + SILENCE_500_MS)
            await until_idle(stream)
            monkeypatch.setattr(stream._engine, "final", None)  # type: ignore[attr-defined]
            stream.feed(bytes(FRAME_BYTES))
            stream.finish()
            assert errors(RECORDINGS[NOBODY], (await until_finals(stream, 1))[0].text) <= 1

    async def test_speech_after_a_pause_is_not_lost(self, local: LocalStt) -> None:
        async with opened(local, interim_ms=0) as stream:
            feed(stream, pcm_of(NOBODY) + SILENCE_500_MS)
            await until_idle(stream)
            feed(stream, pcm_of(HOLD))
            stream.finish()
            text = (await until_finals(stream, 1))[0].text
        assert errors(f"{RECORDINGS[NOBODY]} {RECORDINGS[HOLD]}", text) <= 2

    async def test_a_long_utterance_is_heard_in_pieces_and_joined(self, local: LocalStt) -> None:
        names = [*RECORDINGS] * 2
        async with opened(local, interim_ms=0) as stream:
            for name in names:
                feed(stream, pcm_of(name) + SILENCE_500_MS)
            stream.finish()
            text = (await until_finals(stream, 1))[0].text
        said = " ".join(RECORDINGS[name] for name in names)
        assert errors(said, text) / len(words(said)) <= 0.15

    async def test_interims_can_be_turned_off(self, local: LocalStt) -> None:
        async with opened(local, interim_ms=0) as stream:
            feed(stream, pcm_of(HOLD) + SILENCE_500_MS)
            await until_idle(stream)
            stream.finish()
            assert [item.final for item in await until_finals(stream, 1)] == [True]

    async def test_silence_never_reaches_the_model(self, local: LocalStt, monkeypatch: pytest.MonkeyPatch) -> None:
        async with opened(local) as stream:
            monkeypatch.setattr(stream._engine, "_model", None)  # type: ignore[attr-defined]
            feed(stream, SILENCE_500_MS * 4)
            await until_idle(stream)
            stream.finish()
            assert await until_finals(stream, 1) == [Heard("", final=True)]

    async def test_a_broken_engine_is_said_to_whoever_listens(
        self, local: LocalStt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with opened(local) as stream:
            monkeypatch.setattr(stream._engine._model, "transcribe", None)  # type: ignore[attr-defined]
            feed(stream, pcm_of(HOLD))
            stream.finish()
            with pytest.raises(ConnectorError):
                await until_finals(stream, 1)

    async def test_a_model_that_is_not_there_is_named(self, local: LocalStt, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="neither a known stt model"):
            await local.open(LocalSttOptions(model="whisper-enormous"))
        with pytest.raises(ModelError, match=r"there is no encoder_model.onnx"):
            await local.open(LocalSttOptions(model=str(tmp_path)))

    def test_without_its_model_it_says_what_to_do(self, tmp_path: Path) -> None:
        availability = LocalStt(tmp_path).availability()
        assert not availability.available
        assert "meshag models pull moonshine-base-en" in availability.detail
