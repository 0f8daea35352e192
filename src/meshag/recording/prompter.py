"""Who answers in a replay: every provider and every function of the session, as recorded."""

from meshag.connectors.contracts import Connector, Deadlines
from meshag.connectors.registry import Registry
from meshag.errors import MeshError
from meshag.frames import ToolAnswered
from meshag.recording.recorded_llm import RecordedLlm
from meshag.recording.recorded_stt import RecordedStt
from meshag.recording.recorded_tts import RecordedTts, Speeches
from meshag.recording.tape import Tape
from meshag.recording.virtual import until
from meshag.sessions.tools import ToolConfig
from meshag.subjects import Stage


class TapeRegistry:
    """Does what `connectors.registry.Registry` does: every provider that the session names is there, as recorded."""

    def __init__(self, tape: Tape, installed: Registry, *, endpointing: bool, from_ns: int) -> None:
        """`installed`: where it is asked how long a provider's callers wait before they are asked for patience.
        `from_ns`: what was recognised before that has been dealt with.
        """
        self._tape, self._installed, self._endpointing, self._from_ns = tape, installed, endpointing, from_ns
        self._made: dict[tuple[str, str], Connector] = {}
        self._speeches = Speeches(tape, from_ns)

    def get(self, stage: Stage, name: str) -> Connector:
        """The provider. One instance for the whole replay, as in a worker."""
        key = (stage, name)
        if key not in self._made:
            self._made[key] = self._make(stage, name)
        return self._made[key]

    def _make(self, stage: Stage, name: str) -> Connector:
        try:
            notice_ms = self._installed.get(stage, name).deadlines.notice_ms
        except MeshError:
            notice_ms = Deadlines.notice_ms
        if stage == "stt":
            return RecordedStt(name, self._tape, notice_ms, endpointing=self._endpointing, from_ns=self._from_ns)
        if stage == "llm":
            return RecordedLlm(name, self._tape, notice_ms)
        return RecordedTts(name, self._tape, notice_ms, self._speeches)


class TapeTools:
    """Answers what the functions answered."""

    def __init__(self, tape: Tape) -> None:
        self._answers = {(frame.turn, frame.n): (at, frame.text) for at, frame in tape.of(ToolAnswered)}

    async def call(self, tool: ToolConfig, arguments: str, *, key: str, session: str, turn: int) -> str:
        found = self._answers.get((turn, int(key.rpartition("/")[2])))
        if found is None:
            return '{"error": "not recorded"}'
        await until(found[0])
        return found[1]
