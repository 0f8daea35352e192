"""`make daily-check`: a Daily room for real, from its making to its end, with an agent and a caller in it.

Needs DAILY_API_KEY and DAILY_DOMAIN, and costs a minute of two participants and of recording. Prints what it has
verified, line by line. Exit status: 0 all of it, 1 something did not happen, 2 a setting is missing.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from meshag import clock
from meshag.audio import RATE_HZ
from meshag.connectors.contracts import Booking, Guest
from meshag.connectors.daily_api import DailyApi, Missing
from meshag.connectors.daily_room import DailyGuest
from meshag.connectors.transports.daily import DailyOptions, DailyTransport
from meshag.errors import MeshError
from meshag.ids import new_session_id
from meshag.settings import Settings

STEP_S = 30.0
"""Daily has so long for each step: a recording begins, and presence is told, some seconds late."""

SOUND_S = 2.0
"""So long each of the two speaks."""

FLEET = "check"
"""The mark of the rooms that this makes: no sweep takes them for its own."""

AGENT_HZ, CALLER_HZ = 440.0, 660.0
"""What they say: a tone each."""


class Ears:
    """What one of the two hears and is told, as a session would."""

    def __init__(self) -> None:
        self.pcm = bytearray()
        self.texts: list[str] = []
        self.people: set[str] = set()

    async def hear(self, pcm: bytes) -> None:
        """Somebody speaks."""
        self.pcm += pcm

    async def read(self, text: str) -> None:
        """Somebody writes."""
        self.texts.append(text)

    def interrupt(self) -> None:
        """Not sent here."""

    def participant_joined(self, participant: str, **data: Any) -> None:
        """The other one is there."""
        self.people.add(participant)

    def participant_left(self, participant: str, reason: str, **data: Any) -> None:
        """The other one has gone."""
        self.people.discard(participant)

    def loudest_hz(self) -> float:
        """The strongest frequency in the last second of what was heard; 0: silence, or less than that."""
        samples = np.frombuffer(bytes(self.pcm[-2 * RATE_HZ :]), "<i2").astype(float)
        if len(samples) < RATE_HZ or np.abs(samples).max() < 500:
            return 0.0
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        return float(np.argmax(spectrum)) * RATE_HZ / len(samples)


class Check:
    """The steps, one after the other."""

    def __init__(self) -> None:
        self._began_s = clock.monotonic_s()
        self._verified = 0

    def say(self, what: str) -> None:
        """A line about something that was verified."""
        self._verified += 1
        print(f"{clock.monotonic_s() - self._began_s:6.1f} s  {what}", flush=True)

    async def until(self, what: str, check: Callable[[], Awaitable[object]]) -> None:
        """Wait until it is so, and say it. Raises TimeoutError, naming it."""
        try:
            async with asyncio.timeout(STEP_S):
                while not await check():  # noqa: ASYNC110 - Daily is asked, it does not tell
                    await asyncio.sleep(0.25)
        except TimeoutError:
            raise TimeoutError(f"not within {STEP_S:g} s: {what}") from None
        self.say(what)

    async def run(self, transport: DailyTransport, api: DailyApi) -> None:
        """All of it. Raises MeshError or TimeoutError at the first step that fails; the room is deleted in any case."""
        domain = await api.domain()
        self.say(f"the key is taken; its domain is {domain.domain_name}.daily.co")
        booking = Booking(
            session=new_session_id(),
            base_url="",
            token="",
            options=DailyOptions(),
            name="meshag daily-check",
            recording=True,
            transcription=True,
            ttl_s=600,
            fleet=FLEET,
        )
        made = await transport.invite(booking)
        self.say(f"a private room is made, expires in {booking.ttl_s} s: {made.room_url}")
        guests: list[Guest] = []
        runs: list[asyncio.Task[None]] = []
        try:
            agent = await transport.attend(booking, made.room)
            guests.append(agent)
            self.say("the agent has joined with daily-python")
            caller = await DailyGuest.join(made.room_url, made.token, "Caller")
            guests.append(caller)
            self.say("a caller has joined with the token that a session's caller gets")
            agent_ears, caller_ears = Ears(), Ears()
            runs += [asyncio.create_task(agent.run(agent_ears)), asyncio.create_task(caller.run(caller_ears))]
            await self._in_the_room(transport, made.room, (agent, agent_ears), (caller, caller_ears))
            await transport.dismiss(booking.session, made.room)
            await self.until("the room is deleted", lambda: _is_gone(api, made.room["name"]))
            ended = await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), STEP_S)
            if not all(isinstance(end, MeshError) for end in ended):
                raise MeshError("the deletion of the room did not put everybody out")
            self.say("both were put out by that")
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            for guest in guests:
                await guest.aclose()
            await transport.dismiss(booking.session, made.room)

    async def _in_the_room(
        self, transport: DailyTransport, room: dict[str, Any], agent: tuple[Guest, Ears], caller: tuple[Guest, Ears]
    ) -> None:
        async def both_seen() -> bool:
            return bool(agent[1].people and caller[1].people)

        async def both_present() -> bool:
            return len(await transport.participants(room)) == 2

        await self.until("each sees the other", both_seen)
        await self.until("Daily's presence names both", both_present)
        await transport.start_recording(room)
        self.say("Daily was asked to record")
        await self._hears("the caller hears the agent", agent[0], AGENT_HZ, caller[1])
        await self._hears("the agent hears the caller", caller[0], CALLER_HZ, agent[1])
        caller[0].send_event({"type": "text", "text": "Hello from the caller."})
        agent[0].send_event({"type": "text", "text": "Hello from the agent."})

        async def both_told() -> bool:
            return agent[1].texts == ["Hello from the caller."] and caller[1].texts == ["Hello from the agent."]

        await self.until("app messages go both ways", both_told)

        async def recorded() -> bool:
            return bool(await transport.recordings(room))

        await self.until("the recording is listed", recorded)
        await transport.stop_recording(room)
        self.say("the recording is stopped")
        kept = await transport.keep("", room, 900)
        if kept["expires_at_s"] <= room["expires_at_s"]:
            raise MeshError("the room's expiry was not moved")
        self.say("the room's expiry is moved on")

    async def _hears(self, what: str, speaker: Guest, tone_hz: float, listener: Ears) -> None:
        at = np.arange(int(speaker.rate_hz * 0.02))
        for step in range(int(SOUND_S * 50)):
            wave = 8_000 * np.sin(2 * np.pi * tone_hz * (at + step * len(at)) / speaker.rate_hz)
            speaker.send_audio(wave.astype("<i2").tobytes())
            await asyncio.sleep(0.02)
        found_hz = listener.loudest_hz()
        if abs(found_hz - tone_hz) > 10:
            raise MeshError(f"{what}: not so, the loudest is {found_hz:.0f} Hz in place of {tone_hz:.0f} Hz")
        self.say(f"{what}: {found_hz:.0f} Hz")

    @property
    def verified(self) -> int:
        """How many lines it has said."""
        return self._verified


async def _is_gone(api: DailyApi, name: str) -> bool:
    try:
        await api.presence(name)
    except Missing:
        return True
    return False


async def check() -> int:
    """Run it; tells the exit status."""
    settings = Settings()
    transport = DailyTransport()
    state = transport.availability()
    if not state.available:
        print(f"daily-check needs a Daily account, and this machine: {state.detail}", file=sys.stderr)
        print("  DAILY_API_KEY  the key: https://dashboard.daily.co/developers", file=sys.stderr)
        print("  DAILY_DOMAIN   the domain without .daily.co", file=sys.stderr)
        return 2
    api = DailyApi(settings.daily_api_key.get_secret_value(), settings.daily_base_url)
    checking = Check()
    try:
        await checking.run(transport, api)
    except (MeshError, TimeoutError) as error:
        print(f"FAILED   {error}", file=sys.stderr)
        return 1
    finally:
        await transport.aclose()
        await api.aclose()
    print(f"verified {checking.verified} things")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(check()))
