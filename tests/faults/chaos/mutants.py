"""The product with one of its rules broken: the checker has to notice each.

Loaded by the services as connectors (MESHAG_CONNECTORS), so that the product holds nothing for tests. CHAOS_MUTANT
names the one that is broken in. Each says what faults bring it to light.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from faults.chaos.nemesis import STAGES
from faults.chaos.providers import ChaosLlm, ChaosStt, ChaosTts
from meshag.bus import acknowledged, inlet, outlet
from meshag.connectors.contracts import Booking, Invitation, Options, TransportConnector
from meshag.errors import ConnectorError
from meshag.frames import Interrupt, Speech
from meshag.sessions import store
from meshag.stages import llm, playout, stt, transport, tts, worker
from meshag.subjects import Stage

KILL = {"killed": 1}
FREEZE = {"frozen": 1}
NATS = {"nats killed": 1}
CALM = {"valkey reset": 1}
"""Nothing that anybody notices: these show in any call."""


@dataclass(frozen=True)
class Mutant:
    """One broken rule."""

    name: str
    rule: str
    """What is no longer done."""
    kinds: dict[str, int]
    """The faults that show it."""
    stages: tuple[Stage, ...]
    """And whose."""
    break_in: Callable[[], None]


MUTANTS: dict[str, Mutant] = {}


def mutant(rule: str, kinds: dict[str, int], *stages: Stage) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The function breaks the rule in this process."""

    def note(break_in: Callable[[], None]) -> Callable[[], None]:
        name = break_in.__name__
        MUTANTS[name] = Mutant(name, rule, kinds, stages or STAGES, break_in)
        return break_in

    return note


def _set(owner: object, name: str, stand_in: Any) -> None:
    setattr(owner, name, stand_in)


@mutant("a turn message counts as stored when it was sent, not when JetStream says so", NATS)
def acknowledges_early() -> None:
    async def publish(self: Any, subject: str, data: bytes, message_id: str) -> None:
        if self._bus.connected:
            await self._bus.publish(subject, data, "", {"Nats-Msg-Id": message_id})

    _set(acknowledged.Acknowledged, "publish", publish)


@mutant("the epoch of a frame is looked at by nobody", KILL)
def ignores_the_epoch() -> None:
    def is_next(self: Any, frame: Any) -> bool:
        if not self._joined:
            self.next, self._joined = frame.seq, True
        self.epoch = frame.epoch
        return bool(frame.seq == self.next)

    _set(inlet.Inlet, "_is_next", is_next)
    _set(inlet.Inlet, "fence", lambda self, epoch: None)


@mutant("after a freeze a worker goes on without a look at its leases", FREEZE)
def wakes_and_goes_on() -> None:
    _set(worker.Worker, "sure", lambda self: True)


@mutant("a frame that comes again is taken again", NATS)
def takes_everything() -> None:
    def push(self: Any, frame: Any) -> None:
        if self._held is not None:
            self._held.append(frame)
        else:
            self.epoch, self.next, self._joined = frame.epoch, frame.seq, True
            self._give(frame)

    _set(inlet.Inlet, "push", push)


@mutant("stt hears from the journal what it has already understood", KILL, "stt")
def hears_old_turns_again() -> None:
    hear = stt.SttSession._hear_unfinished

    async def from_the_start(self: Any, done: Any, began: Any) -> None:
        await hear(self, (0, -1), (0, 0))

    _set(stt.SttSession, "_hear_unfinished", from_the_start)


@mutant("stt begins with what is said from now on", KILL, "stt")
def hears_from_now_on() -> None:
    async def nothing(self: Any, done: Any, began: Any) -> None:
        subject = stt.subject_of("transport", "audio", self.session)
        await self.inlet(subject).start_live()

    _set(stt.SttSession, "_hear_unfinished", nothing)


@mutant("the history keeps what was generated, not what was heard", CALM)
def remembers_what_was_generated() -> None:
    _set(llm, "heard", lambda texts, n, ms, chunk_ms: "".join(texts))


@mutant("tts says the sentence again that its former owner had begun", KILL, "tts")
def says_the_sentence_again() -> None:
    left = tts._left

    def again(chunk: Any, said: Any) -> Any:
        found = left(chunk, said)
        return found if found is None or not found.skip else replace(found, skip=0, take=found.take + 1)

    _set(tts, "_left", again)


@mutant("llm answers anew after what its former owner has said", KILL, "llm")
def answers_again() -> None:
    _set(llm.Reply, "said", property(lambda self: ""))


@mutant("llm leaves unfinished what its former owner had begun", KILL, "llm")
def leaves_it_unfinished() -> None:
    resume = llm.LlmSession.resume

    async def but_not(self: Any) -> None:
        await resume(self)
        if self._work is not None:
            self._work.cancel()

    _set(llm.LlmSession, "resume", but_not)


@mutant("now and then a piece of speech goes to another session", CALM)
def speaks_to_others() -> None:
    say_now = tts.TtsSession.say_now
    known: dict[str, Any] = {}

    async def to_others(self: Any, frame: Any) -> None:
        known[self.session] = self
        await say_now(self, frame)
        if isinstance(frame, Speech) and frame.n == 0 and frame.offset == 0:
            for session, other in list(known.items()):
                if session != self.session and not other._closed and other._now is not None:
                    await say_now(other, replace_frame(frame, other))

    def replace_frame(frame: Speech, other: Any) -> Speech:
        import msgspec

        return msgspec.structs.replace(frame, turn=other._now.turn, n=other._now.n, take=other._now.take + 1)

    _set(tts.TtsSession, "say_now", to_others)


@mutant("a worker's death is nobody's business", KILL)
def lets_the_dead_be() -> None:
    _set(transport.Call, "on_death", lambda self, worker: None)


@mutant("audio that was on its way when NATS went is not sent again", NATS)
def repeats_nothing() -> None:
    _set(outlet.Outlet, "_again", lambda self: None)
    _set(inlet, "MEDIA_PATIENCE_MS", 1)


@mutant("a session's leases stay when it ends", CALM)
def leaves_its_leases() -> None:
    _set(store, "PARTS", tuple(part for part in store.PARTS if not part.startswith("lease")))


@mutant("an interrupted answer goes on", CALM)
def talks_on() -> None:
    on_signal = transport.Call.on_signal

    def deaf(self: Any, frame: Any) -> None:
        if not isinstance(frame, Interrupt):
            on_signal(self, frame)

    _set(transport.Call, "on_signal", deaf)


@mutant("the agent's audio is played again when it comes again", NATS)
def plays_it_again() -> None:
    add = playout.Playout.add

    def again(self: Any, frame: Any) -> None:
        self._got_ms = 0.0
        add(self, frame)

    _set(playout.Playout, "add", again)
    takes_everything()


@mutant("deaths and takeovers are not counted", KILL)
def counts_nothing() -> None:
    from meshag.observe import metrics

    class Silent:
        def labels(self, *_: str) -> "Silent":
            return self

        def inc(self, *_: float) -> None: ...

    _set(metrics, "WORKERS_GONE", Silent())


class MutantStt(ChaosStt):
    """Nobody asks it anything: it is here to be imported."""

    name: ClassVar[str] = "mutant"


class MutantLlm(ChaosLlm):
    """As above."""

    name: ClassVar[str] = "mutant"


class MutantTts(ChaosTts):
    """As above."""

    name: ClassVar[str] = "mutant"


class MutantTransport(TransportConnector):
    """As above."""

    name: ClassVar[str] = "mutant"
    options: ClassVar[type[Options]] = Options

    async def invite(self, booking: Booking) -> Invitation:
        """Nobody."""
        raise ConnectorError("there is nobody here")


if _chosen := os.environ.get("CHAOS_MUTANT"):
    MUTANTS[_chosen].break_in()
