"""The agent in a Daily room, without a room: what it mixes, cuts and drops."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.audio import FRAME_BYTES
from meshag.connectors import daily_room
from meshag.connectors.daily_room import AHEAD_BYTES, HEARD_BOUND, MESSAGES_BOUND, DailyGuest, Mixer, fitted
from meshag.errors import ConfigError, ProviderUnavailable

pytestmark = pytest.mark.unit


def frame(value: int) -> bytes:
    return np.full(FRAME_BYTES // 2, value, "<i2").tobytes()


def other(identifier: str) -> dict[str, Any]:
    return {"id": identifier, "info": {"userName": identifier.upper(), "userId": ""}}


class TestMixer:
    def test_one_alone_is_passed_on_at_once(self) -> None:
        mixer = Mixer()
        assert mixer.add("a", frame(5)[:100]) == []
        assert mixer.add("a", frame(5)[100:]) == [frame(5)]

    def test_two_are_summed_without_overflow(self) -> None:
        mixer = Mixer()
        mixer.add("a", frame(1))
        assert mixer.add("b", frame(2)) == []  # a's first is out already
        assert mixer.add("a", frame(30_000)) == [frame(30_002)]
        mixer.add("b", frame(30_000))
        assert mixer.add("a", frame(30_000)) == [frame(32_767)]
        mixer.add("b", frame(-30_000))
        assert mixer.add("a", frame(-30_000)) == [frame(-32_768)]

    def test_who_sends_nothing_is_not_waited_for(self) -> None:
        mixer = Mixer()
        mixer.add("a", frame(1))
        mixer.add("b", frame(2))
        mixer.add("a", frame(3))
        sent = [mixer.add("a", frame(number)) for number in range(10, 16)]
        assert sent[0] == sent[1] == []
        assert [one for some in sent for one in some] == [frame(number) for number in range(10, 16)]
        mixer.drop("a")
        assert mixer.add("b", frame(7)) == [frame(7)]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1500)), max_size=60))
    def test_nothing_is_made_up(self, pieces: list[tuple[str, int]]) -> None:
        mixer, out, most = Mixer(), 0, dict.fromkeys("abc", 0)
        for who, size in pieces:
            most[who] += size
            for mixed in mixer.add(who, bytes(size)):
                assert len(mixed) == FRAME_BYTES
                out += len(mixed)
        assert out <= sum(most.values())
        assert max(most.values()) - out < 3 * FRAME_BYTES + FRAME_BYTES


class TestFitted:
    def test_what_fits_is_left_alone(self) -> None:
        event = {"type": "reply", "text": "Hello."}
        assert fitted(event) is event

    @given(st.text(min_size=1_000, max_size=9_000))
    def test_a_long_text_is_cut(self, text: str) -> None:
        event = {"type": "reply", "text": text}
        sent = fitted(event)
        assert sent is not None
        assert len(msgspec.json.encode(sent)) <= 4_096
        assert text.startswith(sent["text"])
        assert (sent.get("cut") is True) == (sent["text"] != text)

    def test_what_cannot_be_cut_is_not_sent(self) -> None:
        assert fitted({"type": "x", "list": list(range(2_000))}) is None


class Line:
    """In place of the line: keeps what is written and told."""

    def __init__(self, listener: object, rate_hz: int) -> None:
        self.written: list[bytes] = []
        self.done: list[Callable[[], None]] = []
        self.told: list[Any] = []
        self.closed = False

    async def open(self, url: str, token: str, name: str, *, deadline_s: float) -> None: ...

    def write(self, pcm: bytes, done: Callable[[], None]) -> None:
        self.written.append(pcm)
        self.done.append(done)

    def tell(self, message: Any) -> None:
        self.told.append(message)

    async def close(self) -> None:
        self.closed = True


class Session:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.typed: list[str] = []
        self.interrupts = 0
        self.people: list[str] = []

    async def hear(self, pcm: bytes) -> None:
        self.heard.append(pcm)

    async def read(self, text: str) -> None:
        if text == "no":
            raise ConfigError("this pipeline takes no typed text", code="text_not_taken")
        self.typed.append(text)

    def interrupt(self) -> None:
        self.interrupts += 1

    def participant_joined(self, participant: str, **data: Any) -> None:
        self.people.append(f"+{participant} {data['name']}")

    def participant_left(self, participant: str, reason: str, **data: Any) -> None:
        self.people.append(f"-{participant} {reason}")


@pytest.fixture
async def guest(monkeypatch: pytest.MonkeyPatch) -> tuple[DailyGuest, Line]:
    monkeypatch.setattr(daily_room, "DailyLine", Line)
    guest = await DailyGuest.join("https://x.daily.co/tea", "t", "Agent")
    line: Any = guest._line
    return guest, line


class TestSpeaking:
    async def test_the_next_piece_waits_for_the_one_before(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, line = guest
        for number in range(5):
            agent.send_audio(bytes([number]) * 960)
        assert [len(one) for one in line.written] == [960]
        line.done[0]()
        assert [len(one) for one in line.written] == [960, 1920]
        agent.drop_audio()
        line.done[1]()
        assert len(line.written) == 2  # what was not given away is forgotten
        agent.send_audio(b"\x09" * 960)
        assert line.written[2] == b"\x09" * 960

    async def test_a_room_that_takes_nothing_costs_a_second(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, line = guest
        for _ in range(1_000):
            agent.send_audio(bytes(960))
        assert len(line.written) == 1
        assert agent._speaking_bytes <= AHEAD_BYTES

    async def test_nobody_is_told_anything_while_nobody_is_there(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, line = guest
        agent.send_event({"type": "reply", "text": "x"})
        assert not agent.present
        agent.joined(other("a"))
        agent.send_event({"type": "reply", "text": "y"})
        agent.send_event({"type": "session_ended", "reason": "replaced"})
        agent.send_event({"type": "draining"})
        assert agent.present
        assert line.told == [{"type": "reply", "text": "y"}]


class TestHearing:
    async def test_what_happens_in_the_room_reaches_the_session(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, line = guest
        session = Session()
        agent.joined(other("a"))
        agent.joined(other("a"))
        agent.heard("a", frame(3))
        agent.heard("stranger", frame(4))
        for message in ({"type": "text", "text": " Hi. "}, {"type": "interrupt"}, {"type": "ping"}, "x", {"a": 1}):
            agent.told(message, "a")
        for text in ("", "\x00", "x" * 4_001, "no"):
            agent.told({"type": "text", "text": text}, "a")
        running = asyncio.create_task(agent.run(session))
        while not session.heard:
            await asyncio.sleep(0)
        agent.left(other("a"), "leftCall")
        while len(session.people) < 2:
            await asyncio.sleep(0)
        await agent.close(1000, "ended")
        await running
        assert session.people == ["+a A", "-a leftCall"]
        assert session.heard == [frame(3)]
        assert (session.typed, session.interrupts) == (["Hi."], 1)
        kinds = [event.get("code") or event["type"] for event in line.told]
        assert kinds == ["pong", "text_invalid", "text_invalid", "text_invalid", "text_not_taken"]

    async def test_a_lost_room_is_told(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, _ = guest
        running = asyncio.create_task(agent.run(Session()))
        await asyncio.sleep(0)
        agent.lost("room-deleted")
        agent.lost("left")
        with pytest.raises(ProviderUnavailable, match=r"\(room-deleted\)"):
            await running
        agent.lost("Connection(Weird { token: secret })")

    async def test_a_session_that_takes_nothing_costs_no_more_than_the_bounds(
        self, guest: tuple[DailyGuest, Line]
    ) -> None:
        agent, _ = guest
        agent.joined(other("a"))
        for number in range(1_000):
            agent.heard("a", frame(number))
            agent.told({"type": "interrupt"}, "a")
        assert len(agent._heard) == HEARD_BOUND
        assert agent._heard[-1] == frame(999)
        assert len(agent._told) == MESSAGES_BOUND

    async def test_leaving(self, guest: tuple[DailyGuest, Line]) -> None:
        agent, line = guest
        await agent.aclose()
        agent.send_audio(bytes(960))
        agent.send_event({"type": "x"})
        assert line.closed
        assert not line.written
        assert not line.told
