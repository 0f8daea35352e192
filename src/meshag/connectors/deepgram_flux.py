"""Deepgram's Flux on /v2/listen: `ForceEndTurn` asks for the end of a part, `EndOfTurn` (`manual`) answers.

https://developers.deepgram.com/docs/flux/force-end-turn: where Flux has not heard of a turn yet, the question is lost.
"""

import aiohttp
import msgspec

from meshag.connectors.deepgram_listen import BYTES_PER_S, SAME_S, SILENCE, ListenStream, Part, stated

BATCH_BYTES = 80 * BYTES_PER_S // 1000
"""Flux works on 80 ms at a time."""

LATE_S = 0.5
"""When it has heard on for so long after it was asked, no answer will come."""


class FluxMessage(msgspec.Struct):
    """`TurnInfo`, and whatever else comes."""

    type: str = ""
    event: str = ""
    transcript: str = ""
    audio_window_end: float = 0.0
    trigger: str | None = None
    code: str = ""


_flux = msgspec.json.Decoder(FluxMessage)


class FluxStream(ListenStream):
    """/v2/listen. `ForceEndTurn` asks for the end of a part, `EndOfTurn` with the trigger `manual` answers."""

    ask = '{"type":"ForceEndTurn"}'

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, turns: bool) -> None:
        super().__init__(socket, turns=turns, batch_bytes=BATCH_BYTES)
        self._eager = False

    def take(self, message: str) -> None:
        found = _flux.decode(message)
        if found.type == "TurnInfo":
            self._turn_info(found)
        elif found.type == "Warning" and found.code == "FORCE_END_TURN_NO_ACTIVE_TURN":
            self._parts[0].answered = self._parts[0].end_s is not None
            self.settle()
        elif found.type == "Error":
            raise stated(found.code)

    def _turn_info(self, found: FluxMessage) -> None:
        part, text = self._parts[0], found.transcript.strip()
        news, self._heard_s = found.audio_window_end > self._heard_s, max(self._heard_s, found.audio_window_end)
        if found.event == "EndOfTurn":
            self._eager, part.open = False, ""
            part.add(text)
            self.turn_ended()
            part.answered = part.forced = part.end_s is not None and found.trigger in ("manual", None)
        else:
            part.open = text
            self._eager = found.event == "EagerEndOfTurn" or (self._eager and found.event == "Update")
            if text or news:
                self.interim(eager=self._eager)
        self.settle()

    def is_done(self, part: Part) -> bool:
        if part.dropped and part.answered:
            return True
        passed = self._heard_s >= part.fed_s - SAME_S
        if not (passed or (part.forced and part.is_heard(self._heard_s))):
            return False  # what was fed is still on its way through Flux
        if part.dropped or not part.open:
            return True
        if part.answered or self._heard_s >= max(part.asked_s + LATE_S, part.fed_s + SAME_S):
            self._ask(part)  # asked before it had heard of this turn: the question was lost
        return False

    def nudge(self, part: Part) -> None:
        self._hush(SILENCE)

    def keep_alive(self) -> None:
        self._hush(bytes(BATCH_BYTES))
