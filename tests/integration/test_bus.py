"""The bus on a real nats-server: what is said is heard, kept and healed, also when the server dies under it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshag import clock, subjects
from meshag.bus import connection
from meshag.bus.acknowledged import Acknowledged
from meshag.bus.connection import Bus
from meshag.bus.inlet import Inlet
from meshag.bus.journal import Journal
from meshag.bus.outlet import Outlet
from meshag.embedded.servers import EmbeddedServers
from meshag.errors import BusError, OverloadError
from meshag.frames import AnyFrame, AudioIn, TextIn, encode
from meshag.ids import SessionId, new_session_id

pytestmark = pytest.mark.integration


class Sure:
    def sure(self) -> bool:
        return True


@pytest.fixture
def session() -> SessionId:
    return new_session_id()


@pytest.fixture
async def bus(servers: EmbeddedServers) -> AsyncIterator[Bus]:
    bus = await Bus.connect(servers.nats_url, name="test")
    yield bus
    await bus.close()


@pytest.fixture
async def other(servers: EmbeddedServers) -> AsyncIterator[Bus]:
    bus = await Bus.connect(servers.nats_url, name="other")
    yield bus
    await bus.close()


@pytest.fixture
async def turns(bus: Bus) -> AsyncIterator[Acknowledged]:
    turns = Acknowledged(bus)
    await turns.start()
    yield turns
    await turns.aclose()


async def until(true: Any, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.005)


# -- delivery ---------------------------------------------------------------------------------------------------------


async def test_audio_arrives_in_order_and_is_kept(bus: Bus, other: Bus, session: SessionId):
    heard: list[AnyFrame] = []
    inlet = Inlet(other, subjects.audio_input(session), heard.append)
    await inlet.open()
    outlet = Outlet(bus, subjects.audio_input(session), 1, Sure(), None)
    sent = [await outlet.send(AudioIn(pcm=bytes([n] * 640))) for n in range(200)]
    await until(lambda: len(heard) == 200)
    assert heard == sent
    assert await Journal(other).read(subjects.audio_input(session)) == sent
    await inlet.aclose()
    outlet.close()


async def test_words_are_acknowledged_and_kept(bus: Bus, other: Bus, turns: Acknowledged, session: SessionId):
    heard: list[AnyFrame] = []
    inlet = Inlet(other, subjects.text_input(session), heard.append)
    await inlet.open()
    outlet = Outlet(bus, subjects.text_input(session), 1, Sure(), turns)
    sent = [await outlet.send(TextIn(turn=n, text=str(n))) for n in range(50)]
    await until(lambda: turns.waiting == 0)
    await until(lambda: len(heard) == 50)
    assert heard == sent
    assert await Journal(other).read(subjects.text_input(session)) == sent
    await inlet.aclose()


async def test_the_same_message_id_is_kept_once(bus: Bus, turns: Acknowledged, session: SessionId):
    subject = subjects.text_input(session)
    data = encode(TextIn(turn=1, epoch=1, text="so"))
    for _ in range(3):
        await bus.publish(subject, data, headers={"Nats-Msg-Id": f"{subject}/1/0"})
    await turns.publish(subject, data, f"{subject}/1/0")
    await until(lambda: turns.waiting == 0)
    requests = {"seq": 1, "next_by_subj": subject, "batch": 10}
    read = await Journal(bus)._get(subject, requests)
    assert read.payloads == [data]


async def test_nobody_hears_another_session(bus: Bus, other: Bus, session: SessionId):
    heard: list[bytes] = []
    subscription = await other.subscribe(subjects.audio_input(session), heard.append)
    await bus.publish(subjects.audio_input(new_session_id()), b"not for you")
    await bus.publish(subjects.audio_input(session), b"for you")
    await until(lambda: heard)
    await subscription.close()
    await subscription.close()
    await bus.publish(subjects.audio_input(session), b"too late")
    await other.round_trip_ms()
    await asyncio.sleep(0.05)
    assert heard == [b"for you"]


# -- the shortcut in the client library -------------------------------------------------------------------------------


async def test_a_message_is_handed_over_inside_the_reader_without_queue_or_task(bus: Bus, other: Bus):
    """`_Inbox`: guards the pinned version of the library."""
    callers: list[str] = []

    def deliver(data: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        callers.append(task.get_coro().__qualname__)  # type: ignore[union-attr]

    subscription = await other.subscribe("test.inbox", deliver)
    inside: Any = subscription._subscription
    assert isinstance(inside._pending_queue, connection._Inbox)
    for _ in range(100):
        await bus.publish("test.inbox", bytes(1000))
    await until(lambda: len(callers) == 100)
    assert set(callers) == {"Client._read_loop"}
    assert inside._pending_queue.empty()
    await subscription.close()


async def test_the_shortcut_survives_a_large_number_of_bytes(bus: Bus, other: Bus):
    """The library counts bytes as pending that nobody takes off its queue; its limit must not apply."""
    count = [0]
    subscription = await other.subscribe("test.bytes", lambda data: count.__setitem__(0, count[0] + len(data)))
    inside: Any = subscription._subscription
    inside._pending_size = 2**40
    await bus.publish("test.bytes", bytes(500_000))
    await until(lambda: count[0] == 500_000)
    await subscription.close()


async def test_a_listener_that_breaks_does_not_make_the_process_deaf(bus: Bus, other: Bus):
    heard: list[bytes] = []

    def deliver(data: bytes) -> None:
        heard.append(data)
        raise ValueError("a bug")

    subscription = await other.subscribe("test.bug", deliver)
    for n in range(3):
        await bus.publish("test.bug", bytes([n]))
    await until(lambda: len(heard) == 3, timeout_s=10)
    await subscription.close()


async def test_the_server_knows_of_a_subscription_before_it_answers_for_it(bus: Bus):
    """The library's own flush pings before the subscription is written: what is said meanwhile would never be heard."""
    transport: Any = bus._client._transport
    written: list[bytes] = []
    write, writelines = transport.write, transport.writelines
    transport.write = lambda data: (written.append(bytes(data)), write(data))
    transport.writelines = lambda lines: (written.extend(map(bytes, lines)), writelines(lines))
    subscription = await bus.subscribe("test.order", lambda data: None)
    verbs = [data.split()[0] for data in written]
    assert verbs.index(b"SUB") < verbs.index(b"PING")
    await subscription.close()


async def test_an_answer_that_comes_too_late_does_not_make_the_process_deaf(fresh_servers: EmbeddedServers):
    bus = await Bus.connect(fresh_servers.nats_url, name="test")
    heard: list[bytes] = []
    lost: list[bool] = []
    await bus.subscribe("test.late", heard.append)
    bus.on_reconnect(lambda: lost.append(True))
    fresh_servers.nats.freeze()
    await asyncio.sleep(0.1)  # the signal takes a moment to reach all of its threads
    with pytest.raises(BusError):
        await bus.round_trip_ms()
    fresh_servers.nats.thaw()
    await asyncio.sleep(0.2)
    await bus.publish("test.late", b"so")
    await until(lambda: heard, timeout_s=1.5)
    assert lost == []
    await bus.close()


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_requests_are_answered_each_by_one_of_a_group(bus: Bus, other: Bus):
    answered: list[str] = []

    def answer(who: str) -> Any:
        async def answer(data: bytes) -> bytes:
            answered.append(who)
            return data.upper()

        return answer

    one = await bus.serve("test.ask", answer("one"), queue="q")
    two = await other.serve("test.ask", answer("two"), queue="q")
    assert await bus.request("test.ask", b"so", timeout_ms=2000) == b"SO"
    for _ in range(30):
        await bus.request("test.ask", b"so", timeout_ms=2000)
    assert len(answered) == 31
    await one.close()
    await two.close()


async def test_no_listener_is_told_at_once_and_no_answer_in_time(bus: Bus, other: Bus):
    began = clock.monotonic_s()
    with pytest.raises(OverloadError):
        await bus.request("test.nobody", b"", timeout_ms=5000)
    assert clock.monotonic_s() - began < 3

    async def fail(data: bytes) -> bytes:
        raise ValueError("a bug")

    subscription = await other.serve("test.silent", fail)
    with pytest.raises(BusError):
        await bus.request("test.silent", b"", timeout_ms=100)
    await subscription.close()


# -- the journal ------------------------------------------------------------------------------------------------------


async def test_more_than_one_batch_is_read_in_order_among_others(bus: Bus, session: SessionId):
    mine, neighbour = subjects.audio_input(session), subjects.audio_input(new_session_id())
    for seq in range(1203):
        await bus.publish(mine, encode(AudioIn(seq=seq, epoch=1, pcm=b"")))
        await bus.publish(neighbour, encode(AudioIn(seq=seq, epoch=9, pcm=b"")))
    await bus.round_trip_ms()
    journal = Journal(bus)
    read = await journal.read(mine)
    assert [(frame.epoch, frame.seq) for frame in read] == [(1, seq) for seq in range(1203)]
    last = await journal.last(mine)
    assert last is not None
    assert last.seq == 1202


async def test_only_about_the_newest_are_read_when_asked(bus: Bus, session: SessionId):
    subject = subjects.audio_input(session)
    for seq in range(80):
        await bus.publish(subject, encode(AudioIn(seq=seq, epoch=1, pcm=b"")))
        await asyncio.sleep(0.02)
    read = await Journal(bus).read(subject, newest=5)  # these, and a second before
    assert read[-1].seq == 79
    assert 5 <= len(read) < 79
    assert [frame.seq for frame in read] == list(range(read[0].seq, 80))


async def test_nothing_is_read_where_nothing_was_said_or_all_is_forgotten(bus: Bus, session: SessionId):
    subject, journal = subjects.text_input(session), Journal(bus)
    assert await journal.read(subject) == []
    assert await journal.read(subject, newest=5) == []
    assert await journal.last(subject) is None
    neighbour = subjects.text_input(new_session_id())
    for one in (subject, neighbour):
        await bus.publish(one, encode(TextIn(epoch=1, text="so")))
    await bus.round_trip_ms()
    await journal.forget(subject)
    assert await journal.read(subject) == []
    assert len(await journal.read(neighbour)) == 1


async def test_a_gap_is_healed_from_the_journal(bus: Bus, other: Bus, session: SessionId):
    subject = subjects.text_input(session)
    heard: list[AnyFrame] = []
    inlet = Inlet(other, subject, heard.append)
    await inlet.open(hold=True)
    await inlet.start_live()
    inlet.replay([])
    for seq in range(5):
        frame = TextIn(seq=seq, epoch=1, text=str(seq))
        if seq == 2:  # stored, and not heard
            inlet._on_message, heard_by = (lambda data: None), inlet._on_message  # type: ignore[method-assign]
            subscription = inlet._subscription
            assert subscription is not None
            await subscription.close()
            await bus.publish(subject, encode(frame))
            await bus.round_trip_ms()
            inlet._on_message = heard_by  # type: ignore[method-assign]
            inlet._subscription = await other.subscribe(subject, inlet._on_message)
            continue
        await bus.publish(subject, encode(frame))
    await until(lambda: len(heard) == 5)
    assert [frame.seq for frame in heard] == [0, 1, 2, 3, 4]
    assert inlet.healed >= 1
    assert inlet.lost == 0
    await inlet.aclose()


# -- the server dies --------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_deleted_is_made_again_and_nothing_is_lost(fresh_servers: EmbeddedServers):
    session = new_session_id()
    bus = await Bus.connect(fresh_servers.nats_url, name="test")
    turns = Acknowledged(bus)
    await turns.start()
    outlet = Outlet(bus, subjects.text_input(session), 1, Sure(), turns)
    await outlet.send(TextIn(text="before"))
    await until(lambda: turns.waiting == 0)
    await bus._client.jetstream().delete_stream(subjects.TEXT_INPUT)
    await outlet.send(TextIn(text="after"))
    await until(lambda: turns.waiting == 0)
    read = await Journal(bus).read(subjects.text_input(session))
    assert [getattr(frame, "text", "") for frame in read] == ["after"]
    assert bus.refusal is None
    await turns.aclose()
    await bus.close()


async def test_many_declare_the_streams_at_once(fresh_servers: EmbeddedServers):
    connected = await asyncio.gather(*(Bus.connect(fresh_servers.nats_url, name=f"b{n}") for n in range(6)))
    assert all(bus.settled for bus in connected)
    await asyncio.gather(*(bus.close() for bus in connected))


async def test_no_server_is_an_error_that_says_what_to_do_and_no_secret():
    with pytest.raises(BusError) as caught:
        await Bus.connect("nats://mesh:hush@127.0.0.1:1", name="test", timeout_ms=100)
    assert "NATS_URL" in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_a_server_that_wants_another_password_says_so_and_no_secret(servers: EmbeddedServers):
    with pytest.raises(BusError, match="refuses us") as caught:
        await Bus.connect(f"nats://mesh:hush@127.0.0.1:{servers.nats.port}", name="test", timeout_ms=500)
    assert "hush" not in str(caught.value)


class Traffic:
    """A producer of words and one of audio on one connection, a listener on another.

    Audio flows at its own pace: what an outlet keeps to send again is counted in frames of 20 ms.
    """

    def __init__(self) -> None:
        self.session = new_session_id()
        self.words: list[AnyFrame] = []
        self.audio: list[AnyFrame] = []
        self.heard_at: list[float] = []
        self.sent = 0
        self._stopping = False

    async def start(self, url: str) -> None:
        self.speaker = await Bus.connect(url, name="speaker")
        self.hearer = await Bus.connect(url, name="hearer")
        self.turns = Acknowledged(self.speaker)
        await self.turns.start()
        self.text_out = Outlet(self.speaker, subjects.text_input(self.session), 1, Sure(), self.turns)
        self.audio_out = Outlet(self.speaker, subjects.audio_input(self.session), 1, Sure(), None)
        self.inlets = [
            Inlet(self.hearer, subjects.text_input(self.session), self.words.append),
            Inlet(self.hearer, subjects.audio_input(self.session), self._hear, paced=True),
        ]
        for inlet in self.inlets:
            await inlet.open(hold=True)
            await inlet.start_live()
            inlet.replay([])
        self._talking = asyncio.create_task(self._talk())

    def _hear(self, frame: AnyFrame) -> None:
        self.audio.append(frame)
        self.heard_at.append(clock.monotonic_s())

    async def _talk(self) -> None:
        while not self._stopping:
            await self.text_out.send(TextIn(text=str(self.sent)))
            await self.audio_out.send(AudioIn(pcm=bytes(640)))
            self.sent += 1
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """No more is said; all that was said has been heard."""
        self._stopping = True  # not cancelled: that could be between a word and its audio
        await self._talking
        await until(lambda: self.turns.waiting == 0)
        await until(lambda: len(self.words) >= self.sent and len(self.audio) >= self.sent)
        for inlet in self.inlets:
            await inlet.aclose()
        await self.turns.aclose()
        await self.speaker.close()
        await self.hearer.close()

    @property
    def longest_silence_s(self) -> float:
        return max(b - a for a, b in zip(self.heard_at, self.heard_at[1:], strict=False))


@pytest.mark.parametrize("down_s", [0.0, 0.5])
async def test_a_killed_server_loses_and_doubles_nothing_and_leaves_nobody_deaf(
    fresh_servers: EmbeddedServers, down_s: float
):
    traffic = Traffic()
    await traffic.start(fresh_servers.nats_url)
    for _ in range(2):
        await asyncio.sleep(0.3)
        fresh_servers.kill_nats()
        await asyncio.sleep(down_s)
        fresh_servers.restart_nats()
        heard = len(traffic.audio)
        await until(lambda heard=heard: len(traffic.audio) > heard + 10)
    await traffic.stop()
    expected = [(1, seq) for seq in range(traffic.sent)]
    assert [(frame.epoch, frame.seq) for frame in traffic.words] == expected
    assert [(frame.epoch, frame.seq) for frame in traffic.audio] == expected
    assert [inlet.lost for inlet in traffic.inlets] == [0, 0]
    assert traffic.turns.lost == 0
    print(f"silent for {traffic.longest_silence_s:.3f} s, of which down for {down_s} s")
    assert traffic.longest_silence_s < down_s + 3


async def test_what_was_acknowledged_is_still_in_the_journal_after_the_server_was_killed(
    fresh_servers: EmbeddedServers,
):
    traffic = Traffic()
    await traffic.start(fresh_servers.nats_url)
    await asyncio.sleep(0.3)
    fresh_servers.kill_nats()
    fresh_servers.restart_nats()
    await until(lambda: traffic.hearer.settled and traffic.speaker.settled)
    await until(lambda: traffic.turns.waiting < 5)
    reader = await Bus.connect(fresh_servers.nats_url, name="reader")
    sent = traffic.sent - 5
    read = await Journal(reader).read(subjects.text_input(traffic.session))
    assert [frame.seq for frame in read][:sent] == list(range(sent))
    await traffic.stop()
    await reader.close()


async def test_a_frozen_server_is_left_and_found_again(fresh_servers: EmbeddedServers):
    traffic = Traffic()
    await traffic.start(fresh_servers.nats_url)
    await asyncio.sleep(0.2)
    fresh_servers.nats.freeze()
    await until(lambda: not traffic.speaker.connected)
    fresh_servers.nats.thaw()
    await until(lambda: traffic.speaker.settled and traffic.hearer.settled)
    await traffic.stop()
    assert [frame.seq for frame in traffic.words] == list(range(traffic.sent))
    assert [frame.seq for frame in traffic.audio] == list(range(traffic.sent))


async def test_a_connection_that_the_library_gives_up_is_made_anew(servers: EmbeddedServers):
    """The server may send an error after which the library closes for good."""
    bus = await Bus.connect(servers.nats_url, name="test")
    other = await Bus.connect(servers.nats_url, name="other")
    heard: list[bytes] = []
    healed: list[bool] = []
    await bus.subscribe("test.again", heard.append)
    bus.on_reconnect(lambda: healed.append(True))
    await bus._client._process_err("'Maximum Subscriptions Exceeded'")
    await until(lambda: healed)
    assert bus.settled
    await other.publish("test.again", b"so")
    await until(lambda: heard)
    assert heard == [b"so"]
    await bus.publish("test.again", b"too")
    await until(lambda: len(heard) == 2)
    await bus.close()
    await other.close()
