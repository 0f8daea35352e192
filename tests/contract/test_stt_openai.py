"""Speech to text by OpenAI, against a stand-in that speaks its protocol."""

import asyncio
import io
import json
import random
import struct
import tracemalloc
import wave
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio
from pydantic import ValidationError

from meshag.connectors import openai_files
from meshag.connectors.contracts import Deadlines, Heard
from meshag.connectors.failover import connected
from meshag.connectors.openai_realtime import RealtimeStream, Stated, stated
from meshag.connectors.stt.openai import OpenAiStt, OpenAiSttOptions, wav
from meshag.errors import (
    ConnectorError,
    ProviderGarbage,
    ProviderLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from vendors.fuzz import EXAMPLES, Babbler, odd_bytes, odd_events, odd_http
from vendors.listening import (
    FAULTS,
    SILENCES,
    WsBabbler,
    endures,
    failure_of,
    feed,
    finals,
    most_memory_mb,
    odd_frames,
    opened,
    silence_of,
    until,
)
from vendors.openai_stt import OpenAiSttStandIn, sse
from vendors.spoken import WORDS, speak

pytestmark = pytest.mark.contract

KEY = "sk-canary-1234567890"
SAID = "alpha hotel zulu"
FILE: dict[str, Any] = {}
STREAMED: dict[str, Any] = {"model": "gpt-4o-transcribe"}
LIVE: dict[str, Any] = {"model": "gpt-live-transcribe"}
SOCKET: dict[str, Any] = {"model": "gpt-4o-transcribe", "realtime": True}
EVERY_WAY = pytest.mark.parametrize("options", [FILE, STREAMED, LIVE, SOCKET], ids=["file", "stream", "live", "socket"])


@pytest_asyncio.fixture
async def vendor() -> AsyncIterator[OpenAiSttStandIn]:
    async with OpenAiSttStandIn(KEY) as vendor:
        yield vendor  # type: ignore[misc]


def made(monkeypatch: pytest.MonkeyPatch, url: str, key: str = KEY) -> OpenAiStt:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    return OpenAiStt()


@pytest_asyncio.fixture
async def connector(vendor: OpenAiSttStandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAiStt]:
    connector = made(monkeypatch, vendor.url)
    yield connector
    await connector.aclose()


class TestOptions:
    def test_the_documented_configuration(self) -> None:
        options = {"model": "whisper-1", "language": "auto", "response_format": "json", "temperature": 0}
        assert OpenAiSttOptions.model_validate(options) == OpenAiSttOptions()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"response_format": "srt"}, "for files"),
            ({"response_format": "vtt"}, "for files"),
            ({"response_format": "xml"}, "json"),
            ({"model": "gpt-4o-transcribe", "response_format": "text"}, "json only"),
            ({"model": "gpt-live-transcribe", "realtime": False}, "only on the realtime socket"),
            ({"temperature": 1.1}, "less than or equal to 1"),
            ({"language": "english"}, "match pattern"),
            ({"keywords": ["x"]}, "use prompt"),
            ({"model": "gpt-realtime-whisper", "prompt": "x"}, "takes none"),
            ({"delay": "low"}, "gpt-realtime-whisper"),
            ({"noise_reduction": "near_field"}, "realtime socket"),
            ({"api_key": "x"}, "Extra inputs"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            OpenAiSttOptions.model_validate(options)


class TestAvailability:
    def test_without_a_key_it_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert made(monkeypatch, "https://api.openai.com", "").availability().detail == "set OPENAI_API_KEY"
        assert not made(monkeypatch, "https://api.openai.com", "").availability().available

    @pytest.mark.parametrize("url", ["api.openai.com", "ftp://x", "", "https://", "http://[::1", "http://a:b"])
    def test_a_broken_address_is_named(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        found = made(monkeypatch, url).availability()
        assert not found.available
        assert "OPENAI_BASE_URL" in found.detail

    def test_with_a_key_it_is_there(self, connector: OpenAiStt) -> None:
        assert connector.availability().available
        assert KEY not in repr(connector.__dict__.get("_http")) + connector.availability().detail


class TestHearing:
    @EVERY_WAY
    async def test_every_word_of_many_utterances(self, connector: OpenAiStt, options: dict[str, Any]) -> None:
        rng = random.Random(1)
        said = [rng.choices(WORDS, k=rng.randrange(1, 6)) for _ in range(6)]
        async with opened(connector, **options) as stream:
            for words in said:
                feed(stream, speak(words), rng.choice((333, 640, 5_001)))
                stream.finish()
            assert [text.split() for text in await finals(stream, 6)] == said

    async def test_what_goes_over_the_wire(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        async with opened(connector, language="auto") as stream:
            feed(stream, speak(SAID))
            stream.finish()
            assert await until(stream, lambda heard: heard[-1].final) == [Heard(SAID, final=True)]
        (request,) = vendor.requests
        assert request["headers"]["Authorization"] == f"Bearer {KEY}"
        file = 44 + len(speak(SAID))
        assert request["body"] == {
            "file": file, "model": "whisper-1", "response_format": "json", "temperature": "0"
        }  # fmt: skip

    async def test_options_go_over_the_wire(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        options = {"model": "gpt-transcribe", "language": "de", "prompt": "Züge", "keywords": ["ICE", "Ulm"]}
        async with opened(connector, **options, temperature=0.2) as stream:
            feed(stream, speak(SAID))
            stream.finish()
            await finals(stream)
        body = vendor.requests[-1]["body"]
        assert body | {"file": 0} == {
            "file": 0, "model": "gpt-transcribe", "response_format": "json", "temperature": "0.2", "language": "de",
            "prompt": "Züge", "keywords[]": ["ICE", "Ulm"], "stream": "true",
        }  # fmt: skip

    @pytest.mark.parametrize("answered", ["json", "verbose_json", "text"])
    async def test_every_format_gives_the_same(self, connector: OpenAiStt, answered: str) -> None:
        async with opened(connector, response_format=answered) as stream:
            feed(stream, speak(SAID))
            stream.finish()
            assert await finals(stream) == [SAID]

    async def test_words_come_while_they_are_written(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        vendor.faults.set(slow_s=0.05)
        async with opened(connector, **STREAMED) as stream:
            feed(stream, speak(SAID))
            stream.finish()
            found = await until(stream, lambda heard: heard[-1].final)
        assert [heard.text for heard in found] == ["alpha", "alpha hotel", SAID, SAID]
        assert [heard.final for heard in found] == [False, False, False, True]

    async def test_finals_keep_the_order_of_the_utterances(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn
    ) -> None:
        vendor.delays_s = [0.3, 0.0, 0.0]
        async with opened(connector) as stream:
            for word in ("alpha", "bravo"):
                feed(stream, speak(word))
                stream.finish()
            feed(stream, bytes(1_000))
            stream.finish()
            assert await finals(stream, 3) == ["alpha", "bravo", ""]
        assert len(vendor.requests) == 2

    @pytest.mark.parametrize("pcm", [b"", bytes(640), bytes(3_198), bytes(3_199)], ids=len)
    @EVERY_WAY
    async def test_less_than_a_tenth_of_a_second_is_not_asked_for(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any], pcm: bytes
    ) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, pcm)
            stream.finish()
            assert await finals(stream) == [""]
            feed(stream, speak(SAID))
            stream.finish()
            assert await finals(stream) == [SAID]
        assert not [request for request in vendor.requests[:-1] if request["method"] == "POST"]

    @EVERY_WAY
    async def test_a_tenth_of_a_second_is_asked_for(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any]
    ) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, bytes(3_200))
            stream.finish()
            assert await finals(stream) == [""]
        asked = [request for request in vendor.requests if request["method"] == "POST"]
        commits = [one for socket in vendor.sockets for one in socket["messages"] if "commit" in one.get("type", "")]
        assert len(asked) + len(commits) == 1

    async def test_an_utterance_without_end_is_refused_and_not_kept(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_files, "LONGEST_BYTES", 64_000)
        async with opened(connector) as stream:
            pcm = bytes(6_400_000)
            tracemalloc.start()
            try:
                feed(stream, pcm)
                assert tracemalloc.get_traced_memory()[0] < 1_000_000
            finally:
                tracemalloc.stop()
            stream.finish()
            with pytest.raises(ProviderRejected):
                await finals(stream)
        assert vendor.requests == []

    def test_the_file_is_a_wav(self) -> None:
        pcm = speak(SAID)
        made = wav(pcm)
        with wave.open(io.BytesIO(made)) as file:
            assert file.getparams()[:4] == (1, 2, 16_000, len(pcm) // 2)
            assert file.readframes(len(pcm)) == pcm
        total, bytes_per_s, block = struct.unpack_from("<I", made, 4) + struct.unpack_from("<IH", made, 28)
        assert (total, bytes_per_s, block) == (len(made) - 8, 32_000, 2)

    @EVERY_WAY
    async def test_reset_forgets(self, connector: OpenAiStt, options: dict[str, Any]) -> None:
        async with opened(connector, **options) as stream:
            feed(stream, speak("bravo charlie"))
            stream.reset()
            feed(stream, speak(SAID))
            stream.finish()
            assert await finals(stream) == [SAID]

    @EVERY_WAY
    async def test_closing_ends_what_is_heard(self, connector: OpenAiStt, options: dict[str, Any]) -> None:
        stream = await connector.open(OpenAiSttOptions(**options))
        feed(stream, speak(SAID))
        await stream.aclose()
        await stream.aclose()
        stream.feed(bytes(640))
        stream.finish()
        assert [heard async for heard in stream.heard() if heard.final] == []

    async def test_one_connection_serves_turn_after_turn(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        for _ in range(3):
            async with opened(connector) as stream:
                feed(stream, speak(SAID))
                stream.finish()
                await finals(stream)
        assert len({request["peer"] for request in vendor.requests}) == 1


def told(stream: RealtimeStream, event: str, **more: Any) -> None:
    """An event about a transcript."""
    stream.take(json.dumps({"type": f"conversation.item.input_audio_transcription.{event}", **more}))


def committed(count: int) -> RealtimeStream:
    """A stream to which so many utterances were committed as i1, i2 …; it has no socket, what it sends waits."""
    stream = RealtimeStream(cast("Any", None), live=True)
    for number in range(count):
        feed(stream, bytes(6_400))
        stream.finish()
        stream.take(json.dumps({"type": "input_audio_buffer.committed", "item_id": f"i{number + 1}"}))
    return stream


class TestSocket:
    async def test_settings(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        options = {"model": "gpt-realtime-whisper", "delay": "low", "language": "en", "noise_reduction": "far_field"}
        async with opened(connector, **options):
            pass
        update = vendor.sockets[-1]["messages"][0]
        assert update == {
            "type": "session.update",
            "session": {
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "gpt-realtime-whisper", "language": "en", "delay": "low"},
                        "turn_detection": None,
                        "noise_reduction": {"type": "far_field"},
                    }
                },
            },
        }

    async def test_live_models_write_while_they_are_fed(self, connector: OpenAiStt) -> None:
        async with opened(connector, **LIVE) as stream:
            assert stream.interims
            feed(stream, speak(SAID))
            found = await until(stream, lambda heard: heard[-1].text == SAID)
            assert not any(heard.final for heard in found)

    async def test_other_models_begin_after_the_commit(self, connector: OpenAiStt) -> None:
        async with opened(connector, **SOCKET) as stream:
            assert not stream.interims
            feed(stream, speak(SAID))
            stream.finish()
            assert (await until(stream, lambda heard: heard[-1].final))[-1] == Heard(SAID, final=True)

    async def test_finals_keep_the_order_of_the_commits(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        vendor.backwards = 3
        async with opened(connector, **LIVE) as stream:
            for word in ("alpha", "bravo", "charlie"):
                feed(stream, speak(word))
                stream.finish()
            found = await until(stream, lambda heard: sum(one.final for one in heard) == 3)
        assert [heard.text for heard in found if heard.final] == ["alpha", "bravo", "charlie"]

    async def test_words_of_a_later_utterance_wait_for_the_earlier_ones_final(self) -> None:
        stream = committed(2)
        told(stream, "delta", item_id="i1", delta="alpha")
        told(stream, "delta", item_id="i2", delta="bravo")
        assert await anext(aiter(stream.heard())) == Heard("alpha", final=False)
        told(stream, "delta", item_id="i2", delta=" charlie")
        told(stream, "completed", item_id="i1", transcript="alpha")
        assert await anext(aiter(stream.heard())) == Heard("alpha", final=True)
        told(stream, "delta", item_id="i2", delta=" delta")
        assert await anext(aiter(stream.heard())) == Heard("bravo charlie delta", final=False)

    async def test_what_was_written_before_a_reset_is_forgotten_and_what_was_committed_is_not(self) -> None:
        stream = committed(1)
        told(stream, "delta", item_id="i1", delta="alpha")
        told(stream, "delta", item_id="i2", delta="bravo")
        stream.reset()
        told(stream, "delta", item_id="i1", delta=" hotel")
        assert await anext(aiter(stream.heard())) == Heard("alpha hotel", final=False)
        told(stream, "completed", item_id="i1", transcript="alpha hotel")
        assert await anext(aiter(stream.heard())) == Heard("alpha hotel", final=True)
        told(stream, "delta", item_id="i2", delta="charlie")
        assert await anext(aiter(stream.heard())) == Heard("charlie", final=False)

    async def test_a_commit_that_was_empty_is_an_empty_final_and_any_other_error_an_error(self) -> None:
        stream = committed(2)
        empty = {"type": "invalid_request_error", "code": "input_audio_buffer_commit_empty", "event_id": "commit_2"}
        stream.take(json.dumps({"type": "error", "error": empty}))
        told(stream, "completed", item_id="i1", transcript="alpha")
        heard = aiter(stream.heard())
        assert [await anext(heard), await anext(heard)] == [Heard("alpha", final=True), Heard("", final=True)]
        with pytest.raises(ProviderRejected):
            stream.take(json.dumps({"type": "error", "error": {**empty, "code": "x"}}))

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            ({"code": "rate_limit_exceeded"}, ProviderLimited),
            ({"type": "tokens"}, ProviderLimited),
            ({"code": "invalid_api_key", "type": "invalid_request_error"}, ProviderRejected),
            ({"code": "session_expired", "type": "invalid_request_error"}, ProviderUnavailable),
            ({"code": "insufficient_quota"}, ProviderUnavailable),
            (None, ProviderUnavailable),
        ],
    )
    async def test_a_transcript_that_failed(self, error: dict[str, str] | None, kind: type[ConnectorError]) -> None:
        with pytest.raises(kind) as failed:
            told(committed(1), "failed", item_id="i1", error=error)
        assert type(failed.value) is kind

    async def test_transcripts_without_end_and_without_number_are_bounded(self) -> None:
        stream = committed(0)
        for number in range(17):
            told(stream, "delta", item_id=f"i{number}", delta="alpha")
        told(stream, "delta", item_id="i0", delta="bravo")
        assert await anext(aiter(stream.heard())) == Heard("bravo", final=False)
        stream = committed(1)
        with pytest.raises(ProviderGarbage):
            told(stream, "completed", item_id="i1", transcript="x" * 40_000)

    async def test_a_session_that_is_refused(self, connector: OpenAiStt) -> None:
        with pytest.raises(ProviderRejected) as caught:
            await connector.open(OpenAiSttOptions(model="whisper-9", realtime=True))
        assert str(caught.value) == "openai: an error invalid_value"


class TestFaults:
    @pytest.mark.parametrize(("faults", "kind", "code"), FAULTS, ids=lambda value: str(value)[:40])
    @EVERY_WAY
    async def test_faults_are_told_apart(
        self,
        connector: OpenAiStt,
        vendor: OpenAiSttStandIn,
        options: dict[str, Any],
        faults: dict[str, Any],
        kind: type[ConnectorError],
        code: str,
    ) -> None:
        if options is STREAMED and faults.get("garbage") == "empty":
            kind, code = ProviderUnavailable, "provider_unavailable"
        vendor.faults.set(**faults)
        error = await failure_of(connector, speak(SAID), **options)
        assert (type(error), error.code) == (kind, code), error

    @pytest.mark.parametrize("faults", [{"cut_after": 0}, {"cut_after": 2}, {"error_after": 0}, {"error_after": 2}])
    @EVERY_WAY
    async def test_what_breaks_off_is_an_error(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any], faults: dict[str, Any]
    ) -> None:
        if options is FILE:
            faults = dict.fromkeys(faults, 0)
        vendor.faults.set(**faults)
        error = await failure_of(connector, speak(SAID), **options)
        told_in_a_file = options is FILE and "error_after" in faults  # with status 200, instead of a transcript
        assert type(error) is (ProviderGarbage if told_in_a_file else ProviderUnavailable)

    async def test_a_quota_is_no_limit(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        vendor.faults.set(status=429, code="insufficient_quota")
        assert (await failure_of(connector, speak(SAID))).code == "provider_quota"
        vendor.faults.set(status=429, retry_after="7")
        error = await failure_of(connector, speak(SAID))
        assert isinstance(error, ProviderLimited)
        assert error.retry_after_s == 7.0

    async def test_nobody_listens_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connector = made(monkeypatch, "http://127.0.0.1:9")
        for options in (FILE, LIVE):
            assert isinstance(await failure_of(connector, speak(SAID), **options), ProviderUnavailable)
        await connector.aclose()

    def test_of_an_error_only_a_code_is_repeated(self) -> None:
        assert str(stated(Stated(code="server_error"))).endswith("server_error")
        assert "4111" not in str(stated(Stated(code="my card number is 4111", type="my key")))

    @SILENCES
    @EVERY_WAY
    async def test_silence_yields_nothing(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any], faults: dict[str, Any]
    ) -> None:
        vendor.faults.set(**faults)
        assert await silence_of(connector, speak(SAID), **options) == []

    async def test_an_endless_transcript_ends(self, connector: OpenAiStt, vendor: OpenAiSttStandIn) -> None:
        vendor.faults.set(endless=True)
        before = most_memory_mb()
        for options in (FILE, STREAMED, LIVE):
            assert isinstance(await failure_of(connector, speak(SAID), **options), ProviderGarbage)
        assert most_memory_mb() - before < 64

    @pytest.mark.parametrize("options", [FILE, LIVE])
    async def test_a_cancelled_open_or_request_is_hung_up(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any]
    ) -> None:
        vendor.faults.set(mute=True)
        before = asyncio.all_tasks()
        if options is FILE:
            stream = await connector.open(OpenAiSttOptions())
            feed(stream, speak(SAID))
            stream.finish()
            await asyncio.sleep(0.1)
            await stream.aclose()
        else:
            deadlines = Deadlines(connect_ms=100)
            with pytest.raises(ProviderTimeout):
                await connected(connector.open(OpenAiSttOptions(**options)), deadlines, "openai")
        await asyncio.sleep(0.1)
        assert not {task for task in asyncio.all_tasks() - before if "openai" in task.get_name()}
        vendor.faults.set()
        async with opened(connector, **options) as again:
            feed(again, speak(SAID))
            again.finish()
            assert await finals(again) == [SAID]

    async def test_a_connection_that_was_closed_meanwhile_is_opened_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for number in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(size)
                requests.append(number)
                if number:
                    break
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"text":"yes"}')
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connector = made(monkeypatch, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with opened(connector) as stream:
            for _ in range(2):
                feed(stream, speak(SAID))
                stream.finish()
                await asyncio.sleep(0.2)
            assert await finals(stream, 2) == ["yes", "yes"]
        assert requests == [0, 1, 0]
        await connector.aclose()
        server.close()
        await server.wait_closed()

    @EVERY_WAY
    async def test_errors_hold_no_secret_and_nothing_of_what_was_said(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any]
    ) -> None:
        vendor.script.text = "my card number is 4111"
        after = 0 if options is FILE else 1
        for faults in (
            {"error_after": after}, {"cut_after": after}, {"garbage": "types"}, {"status": 401}, {"endless": True}
        ):  # fmt: skip
            vendor.faults.set(**faults)
            error: BaseException | None = await failure_of(connector, speak(SAID), **options)
            while error is not None:
                assert "4111" not in str(error) + repr(error)
                assert "canary" not in str(error) + repr(error)
                error = error.__cause__


class TestProbe:
    @EVERY_WAY
    async def test_a_probe_does_a_piece_of_work(
        self, connector: OpenAiStt, vendor: OpenAiSttStandIn, options: dict[str, Any]
    ) -> None:
        await connector.probe(OpenAiSttOptions(**options))
        assert vendor.requests
        vendor.faults.set(status=503)
        with pytest.raises(ProviderUnavailable):
            await connector.probe(OpenAiSttOptions(**options))


@pytest.mark.fuzz
class TestGarbage:
    async def test_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(7)
        events = [sse({"type": "transcript.text.delta", "delta": word}) for word in (" see", " you", " there")]
        events.append(sse({"type": "transcript.text.done", "text": "see you there", "usage": {"type": "tokens"}}))
        whole = b'{"text":"see you there","usage":{"type":"duration","seconds":2}}'
        kind = "text/event-stream"

        def answer() -> bytes:
            if kind == "text/event-stream":
                return odd_http(rng, b"".join(odd_events(rng, events)), kind)
            return odd_http(rng, odd_bytes(rng, whole), kind)

        seen = set()
        async with Babbler(answer) as babbler:
            connector = made(monkeypatch, babbler.url)
            for number in range(EXAMPLES):
                kind = ("text/event-stream", "application/json", "text/plain")[number % 3]
                options = {"model": "gpt-4o-transcribe"} if number % 3 == 0 else {}
                options |= {"response_format": "text"} if number % 3 == 2 else {}
                seen.add(await endures(connector, bytes(6_400), options))
            await connector.aclose()
        assert {"heard", "ProviderGarbage", "ProviderUnavailable", "ProviderRejected"} <= seen

    async def test_the_socket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(8)
        name = "conversation.item.input_audio_transcription."
        good: list[dict[str, Any]] = [
            {"type": "session.created", "session": {}},
            {"type": "session.updated", "session": {}},
            {"type": "input_audio_buffer.committed", "item_id": "i1", "previous_item_id": None},
            {"type": name + "delta", "item_id": "i1", "content_index": 0, "delta": " see"},
            {"type": name + "completed", "item_id": "i1", "transcript": "see you", "usage": {"type": "tokens"}},
            {"type": "error", "error": {"type": "invalid_request_error", "code": "x", "event_id": "commit_1"}},
        ]
        seen = set()
        async with WsBabbler(lambda: odd_frames(rng, good)) as babbler:
            connector = made(monkeypatch, babbler.url)
            for _ in range(EXAMPLES // 3):
                seen.add(await endures(connector, bytes(6_400), LIVE))
            await connector.aclose()
        assert {"ProviderGarbage", "ProviderUnavailable"} <= seen
