"""Speech to text on this machine: Moonshine.

The model hears a whole utterance at a time, so interims come from hearing its beginning again and again. When the
caller pauses, the utterance is heard at once, before anybody knows that it is over: if no more speech follows, the
final text is then already there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from meshag.audio import RATE_HZ, to_floats
from meshag.connectors.contracts import PATIENT, Availability, Heard, Options, SttConnector, SttStream
from meshag.errors import ConnectorError, MeshError
from meshag.models import store
from meshag.models.catalogue import CATALOGUE
from meshag.models.engines import Engines
from meshag.models.moonshine import Moonshine
from meshag.models.offered import check_offered, offered
from meshag.models.progress import megabytes
from meshag.settings import Settings

BYTES_PER_MS = RATE_HZ * 2 // 1000

SHORTEST_MS = 100
"""Less audio than this holds no word."""

PAUSE_MS = 200
"""After this much quiet an utterance is worth hearing as a whole."""

TAIL_MS = 300
"""Quiet kept after the last sound; the rest would only cost time."""

LONGEST_MS = 24_000
"""An utterance longer than this is heard in pieces."""

CUT_FROM_MS, CUT_TO_MS = 14_000, 22_000
"""Such a piece ends at the quietest moment between these."""

LOUDNESS_MS = 20
"""Loudness is measured over this much audio."""

FLOOR = 33.0
"""RMS of samples (full scale 32768) under which everything is quiet: -60 dB."""

QUIET_SHARE = 0.04
"""So is what stays under this share of the loudest moment: -28 dB."""


class LocalSttOptions(Options):
    """What a session may ask of the local recogniser."""

    model: str | None = Field(None, min_length=1, max_length=4096)
    """One of those that the mesh offers (MESHAG_LOCAL_MODELS). Default: the first of them."""

    interim_ms: int = Field(700, ge=0, le=10_000)
    """Speech between two interims, ms; 0: none. Interims are left out while the machine has finals to work on."""

    language: Literal["auto", "en"] = "auto"
    """The models of the catalogue know English."""


class LocalStt(SttConnector):
    """Moonshine in this process."""

    name = "local"
    shared = False
    options = LocalSttOptions
    deadlines = PATIENT

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._cache_dir = cache_dir or Settings().cache_dir
        self._engines = Engines(lambda path: _Engine(Moonshine(path)))

    def availability(self) -> Availability:
        """Whether onnxruntime and the default model are there."""
        if not find_spec("onnxruntime"):
            return Availability(False, "onnxruntime is not installed: pip install 'meshag[local]'")
        name = offered("stt")[0]
        model = next((model for model in CATALOGUE if model.name == name), None)
        if model is None:
            there = Path(name).expanduser().is_dir()
            return Availability(there, name if there else f"MESHAG_LOCAL_MODELS names {name}, which is not there")
        found = store.state(model, self._cache_dir)
        if found != "present":
            return Availability(False, f"the model {model.name} is {found}: {store.remedy(model)}")
        return Availability(True, f"{model.title}, {megabytes(model.size_bytes)}")

    def accept(self, options: Options) -> None:
        """Only models that were loaded at the start: a path that a session names is a file of this machine."""
        assert isinstance(options, LocalSttOptions)
        if options.model is not None:
            check_offered(options.model, "stt")

    async def warm(self) -> None:
        """Load the models that are offered and let each hear a second of silence."""
        for model in offered("stt"):
            engine = await self._engine(LocalSttOptions(model=model))
            await engine.final(bytes(1000 * BYTES_PER_MS))

    async def open(self, options: Options) -> SttStream:
        """A stream for one session. Raises ModelError when its model cannot be loaded."""
        assert isinstance(options, LocalSttOptions)
        return _Stream(await self._engine(options), options)

    async def _engine(self, options: LocalSttOptions) -> "_Engine":
        return await self._engines.get(store.locate(options.model or offered("stt")[0], "stt", self._cache_dir))

    async def aclose(self) -> None:
        """Stop the recognisers' threads."""
        for engine in self._engines.clear():
            engine.close()


class _Engine:
    """A model and the one thread that it runs in. Finals go first: an interim that stands in their way is dropped."""

    def __init__(self, model: Moonshine) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stt")
        self._finals = 0
        self._interims = 0

    @property
    def idle(self) -> bool:
        return not self._finals and not self._interims

    async def final(self, pcm: bytes) -> str:
        self._finals += 1
        try:
            return await self._run(pcm, lambda: False) or ""
        finally:
            self._finals -= 1

    async def interim(self, pcm: bytes, unwanted: Callable[[], bool]) -> str | None:
        """None: a final came, or `unwanted` said so."""
        self._interims += 1
        try:
            return await self._run(pcm, lambda: self._finals > 0 or unwanted())
        finally:
            self._interims -= 1

    async def _run(self, pcm: bytes, stop: Callable[[], bool]) -> str | None:
        if len(pcm) < SHORTEST_MS * BYTES_PER_MS:
            return ""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._model.transcribe, to_floats(pcm), stop)
        except MeshError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base; nothing else may leave a connector
            raise ConnectorError(f"the local recogniser failed: {type(error).__name__}") from error

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Utterance:
    """What was fed since the last final, and how loud it was."""

    def __init__(self) -> None:
        self.audio = bytearray()
        self.pieces: list[str] = []
        """The texts of the pieces that were cut off because the utterance is long."""
        self.over = False
        self.dropped = False
        self.seen_bytes = 0
        """How much of `audio` the last interim heard, or is hearing."""
        self.seen_text = ""
        self.sound_bytes = 0
        """Where in `audio` the last sound ended; 0: all of it is quiet."""
        self._loudest = 0.0
        self._measured = 0

    def add(self, pcm: bytes) -> None:
        self.audio += pcm
        whole = len(self.audio) - (len(self.audio) - self._measured) % (LOUDNESS_MS * BYTES_PER_MS)
        if whole == self._measured:
            return
        frames = np.frombuffer(bytes(self.audio[self._measured : whole]), "<i2").reshape(
            -1, LOUDNESS_MS * RATE_HZ // 1000
        )
        for number, rms in enumerate(_loudness(frames), 1):
            self._loudest = max(self._loudest, rms)
            if rms > max(FLOOR, QUIET_SHARE * self._loudest):
                self.sound_bytes = self._measured + number * LOUDNESS_MS * BYTES_PER_MS
        self._measured = whole

    @property
    def paused_bytes(self) -> int:
        """Where in `audio` a pause is long enough to take everything before it for the whole utterance."""
        return self.sound_bytes + PAUSE_MS * BYTES_PER_MS

    @property
    def heard_out(self) -> bool:
        """Whether the last interim heard all the speech there is."""
        return self.sound_bytes > 0 and self.seen_bytes >= self.paused_bytes

    def cut(self) -> bytes:
        """Take off the first piece of a long utterance, up to a quiet moment."""
        start, end = CUT_FROM_MS * BYTES_PER_MS, CUT_TO_MS * BYTES_PER_MS
        frames = np.frombuffer(bytes(self.audio[start:end]), "<i2").reshape(-1, LOUDNESS_MS * RATE_HZ // 1000)
        smooth = np.convolve(_loudness(frames), np.ones(9) / 9, "same")
        at = start + (int(smooth[5:-5].argmin()) + 5) * LOUDNESS_MS * BYTES_PER_MS
        piece = bytes(self.audio[:at])
        del self.audio[:at]
        self._measured -= at
        self.sound_bytes = max(0, self.sound_bytes - at)
        self.seen_bytes = 0
        return piece

    def rest(self) -> bytes:
        """What is still to be heard: nothing when it is all quiet."""
        return bytes(self.audio[: self.sound_bytes + TAIL_MS * BYTES_PER_MS]) if self.sound_bytes else b""

    def text(self, rest: str) -> str:
        return " ".join(filter(None, (*self.pieces, rest)))


def _loudness(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """RMS of each row."""
    rms: np.ndarray[Any, Any] = np.sqrt(np.mean(np.square(frames.astype(np.float32)), axis=1))
    return rms


class _Stream(SttStream):
    """One session. Jobs run one after the other, so what is heard comes out in order."""

    def __init__(self, engine: _Engine, options: LocalSttOptions) -> None:
        self._engine = engine
        self._interim_bytes = options.interim_ms * BYTES_PER_MS
        self._utterance = _Utterance()
        self._jobs: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._working = False
        self._out: asyncio.Queue[Heard | MeshError | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._work(), name="local-stt")

    def feed(self, pcm: bytes) -> None:
        utterance = self._utterance
        utterance.add(pcm)
        if len(utterance.audio) > LONGEST_MS * BYTES_PER_MS:
            self._jobs.put_nowait(partial(self._hear_piece, utterance, utterance.cut()))
        elif self._engine.idle and not self._working and self._jobs.empty() and self._worth_hearing(utterance):
            self._jobs.put_nowait(partial(self._hear_so_far, utterance))

    def _worth_hearing(self, utterance: _Utterance) -> bool:
        if not utterance.sound_bytes or utterance.heard_out:
            return False
        if len(utterance.audio) >= utterance.paused_bytes:
            return True
        return 0 < self._interim_bytes <= len(utterance.audio) - utterance.seen_bytes

    def finish(self) -> None:
        utterance, self._utterance = self._utterance, _Utterance()
        utterance.over = True
        self._jobs.put_nowait(partial(self._hear_out, utterance))

    def reset(self) -> None:
        self._utterance.dropped = True
        self._utterance = _Utterance()

    async def heard(self) -> AsyncIterator[Heard]:
        while (item := await self._out.get()) is not None:
            if isinstance(item, MeshError):
                raise item
            yield item

    async def aclose(self) -> None:
        self._utterance.dropped = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._out.put_nowait(None)

    async def _work(self) -> None:
        try:
            while True:
                job = await self._jobs.get()
                self._working = True
                await job()
                self._working = False
        except MeshError as error:
            self._out.put_nowait(error)
        except Exception as error:  # whoever iterates must learn that nothing more will come
            self._out.put_nowait(ConnectorError(f"the local recogniser failed: {type(error).__name__}"))

    async def _hear_so_far(self, utterance: _Utterance) -> None:
        if utterance.dropped or utterance.over:
            return
        audio = bytes(utterance.audio[: len(utterance.audio) & ~1])
        utterance.seen_bytes = len(audio)

        def unwanted() -> bool:
            return utterance.dropped or (utterance.over and not utterance.heard_out)

        text = await self._engine.interim(audio, unwanted)
        if text is None:
            utterance.seen_bytes = 0
            return
        utterance.seen_text = text
        if self._interim_bytes and text and not utterance.dropped and not utterance.over:
            self._out.put_nowait(Heard(utterance.text(text), final=False))

    async def _hear_piece(self, utterance: _Utterance, audio: bytes) -> None:
        if not utterance.dropped:
            utterance.pieces.append(await self._engine.final(audio))

    async def _hear_out(self, utterance: _Utterance) -> None:
        rest = utterance.seen_text if utterance.heard_out else await self._engine.final(utterance.rest())
        self._out.put_nowait(Heard(utterance.text(rest), final=True))
