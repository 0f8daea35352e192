"""The line to a Daily room: with Daily's own SDK as far as it goes without Daily, and all the way with the one in its
place, whose signatures are those of the real one."""

import ast
import asyncio
import importlib.util
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import daily as genuine
import pytest

from daily_rooms import SDK
from meshag.connectors import daily_line
from meshag.connectors.daily_line import DailyLine
from meshag.errors import ConnectorError, ProviderRejected
from standins import eventually
from vendors.daily import DOMAIN, DailyStandIn
from vendors.daily_hall import Room
from vendors.daily_words import TokenProperties

pytestmark = pytest.mark.contract

FRAME = b"\x01\x00" * 480  # 20 ms at 24 kHz


def stand_in_sdk() -> ModuleType:
    """The package in place of daily-python, beside the real one."""
    spec = importlib.util.spec_from_file_location("daily_stand_in", SDK / "daily" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN = stand_in_sdk()


class Ears:
    """Keeps what a line tells."""

    def __init__(self) -> None:
        self.people: dict[str, Mapping[str, Any]] = {}
        self.gone: list[str] = []
        self.sound: dict[str, bytes] = {}
        self.messages: list[tuple[Any, str]] = []
        self.why_lost: list[str] = []
        self.loop = asyncio.get_running_loop()

    def joined(self, participant: Mapping[str, Any]) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.people[participant["id"]] = participant

    def left(self, participant: Mapping[str, Any], reason: str) -> None:
        self.gone.append(participant["id"])

    def heard(self, participant: str, pcm: bytes) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.sound[participant] = self.sound.get(participant, b"") + pcm

    def told(self, message: Any, sender: str) -> None:
        self.messages.append((message, sender))

    def lost(self, why: str) -> None:
        self.why_lost.append(why)


# -- signatures -------------------------------------------------------------------------------------------------------


def methods(path: Path) -> dict[str, dict[str, tuple[list[str], int]]]:
    """Of each public class, each method's arguments and how many of them have a default."""
    found: dict[str, dict[str, tuple[list[str], int]]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = {
                one.name: ([arg.arg for arg in one.args.args], len(one.args.defaults))
                for one in node.body
                if isinstance(one, ast.FunctionDef) and (one.name == "__init__" or not one.name.startswith("_"))
            }
    return found


def test_the_stand_in_has_the_genuine_signatures() -> None:
    assert genuine.__file__ is not None
    real = methods(Path(genuine.__file__).with_suffix(".pyi"))
    ours = methods(SDK / "daily" / "__init__.py")
    assert ours.keys() == {
        "AudioData", "CallClient", "CustomAudioSource", "CustomAudioTrack", "Daily", "EventHandler",
    }  # fmt: skip
    for name, said in ours.items():
        assert hasattr(genuine, name)
        for method, signature in said.items():
            if name == "AudioData" and method == "__init__":
                continue  # the genuine one is made by the SDK alone
            assert real[name][method] == signature, f"{name}.{method}"
            assert hasattr(getattr(genuine, name), method)
    fields = {"bits_per_sample", "sample_rate", "num_channels", "num_audio_frames", "audio_frames"}
    assert fields == real["AudioData"].keys()
    assert fields <= vars(STAND_IN.AudioData(b"", 1)).keys()


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["genuine", "stand-in"])
def sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "stand-in":
        monkeypatch.setattr(daily_line, "load", lambda: STAND_IN)
        monkeypatch.setenv("DAILY_STANDIN_URL", "http://127.0.0.1:1")
    return str(request.param)


async def test_audio_is_played_in_real_time_and_the_loop_does_not_wait(sdk: str) -> None:
    line = DailyLine(Ears(), 24_000)
    await line._run(lambda: line._prepare("Agent"), 10)
    played: list[float] = []
    began_s = time.monotonic()
    for _ in range(20):
        line.write(FRAME, lambda: played.append(time.monotonic() - began_s))
    assert time.monotonic() - began_s < 0.2
    await eventually("all of it is played", lambda: len(played) == 20)
    assert 0.3 < played[-1] < 2  # 0.4 s of audio
    assert played == sorted(played)
    await line.close()


async def test_a_room_that_cannot_be_joined_is_told_within_the_deadline(sdk: str) -> None:
    line = DailyLine(Ears(), 24_000)
    began_s = time.monotonic()
    with pytest.raises(ConnectorError):
        await line.open(f"https://{DOMAIN}.daily.co/no-such-room", "no-token", "Agent", deadline_s=1)
    assert time.monotonic() - began_s < 1 + daily_line.LEAVE_S + 2
    await line.close()  # may be called again


async def test_arguments_that_the_sdk_does_not_take(sdk: str) -> None:
    line = DailyLine(Ears(), -1)
    with pytest.raises(ConnectorError):
        await line.open(f"https://{DOMAIN}.daily.co/tea", "t", "Agent", deadline_s=1)


# -- the stand-in, in a room ------------------------------------------------------------------------------------------


@pytest.fixture
async def vendor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DailyStandIn]:
    monkeypatch.setattr(daily_line, "load", lambda: STAND_IN)
    async with DailyStandIn() as vendor:
        monkeypatch.setenv("DAILY_STANDIN_URL", vendor.url)
        vendor.rooms["tea"] = Room("tea", "private", {"max_participants": 3}, f"https://{DOMAIN}.daily.co/tea")
        yield vendor


def token(vendor: DailyStandIn, **more: Any) -> str:
    return vendor.hall.token(TokenProperties(room_name="tea", exp=int(time.time()) + 60, **more))


async def test_two_hear_and_tell_each_other(vendor: DailyStandIn) -> None:
    first, second = Ears(), Ears()
    ann, bob = DailyLine(first, 16_000), DailyLine(second, 16_000)
    await ann.open(vendor.rooms["tea"].url, token(vendor), "Ann")
    await bob.open(vendor.rooms["tea"].url, token(vendor, user_name="Bob", user_id="b-1"), "ignored")
    await eventually("each sees the other", lambda: first.people and second.people)
    (seen,) = first.people.values()
    assert (seen["info"]["userName"], seen["info"]["userId"]) == ("Bob", "b-1")
    done: list[bool] = []
    ann.write(b"\x05\x00" * 320, lambda: done.append(True))
    await eventually("Bob hears Ann", lambda: list(second.sound.values()) == [b"\x05\x00" * 320])
    bob.tell({"type": "text", "text": "Hello."})
    await eventually("Ann is told", lambda: [one for one, _ in first.messages] == [{"type": "text", "text": "Hello."}])
    await bob.close()
    await eventually("Ann sees Bob go", lambda: first.gone == list(first.people))
    await ann.close()
    await eventually("nobody is left", lambda: not vendor.rooms["tea"].guests)
    assert done


async def test_a_room_that_is_deleted_is_lost(vendor: DailyStandIn) -> None:
    ears = Ears()
    line = DailyLine(ears, 16_000)
    await line.open(vendor.rooms["tea"].url, token(vendor), "Agent")
    for guest in list(vendor.rooms["tea"].guests.values()):
        await vendor.hall.put_out(vendor.rooms["tea"], guest, "room-deleted")
    await eventually("it is told", lambda: ears.why_lost)
    assert ears.why_lost[0] == "room-deleted"
    await line.close()


@pytest.mark.parametrize(("room", "shown"), [("tea", "forged"), ("tea", ""), ("coffee", None)])
async def test_a_door_that_is_shut(vendor: DailyStandIn, room: str, shown: str | None) -> None:
    line = DailyLine(Ears(), 16_000)
    with pytest.raises(ProviderRejected) as refused:
        await line.open(f"https://{DOMAIN}.daily.co/{room}", token(vendor) if shown is None else shown, "Agent")
    assert refused.value.code == "room_closed"
