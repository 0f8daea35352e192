"""Deepgram's nova models on /v1/listen: `Finalize` asks for the end of a part, `from_finalize` answers.

https://developers.deepgram.com/docs/finalize: there may be no answer, when there is little to answer.
"""

import msgspec

from meshag.connectors.deepgram_listen import BYTES_PER_S, SAME_S, SILENCE, ListenStream, Part, stated


class Alternative(msgspec.Struct):
    transcript: str = ""


class Channel(msgspec.Struct):
    alternatives: list[Alternative] = []


class NovaMessage(msgspec.Struct):
    """`Results`, and whatever else comes."""

    type: str = ""
    channel: Channel | list[int] | None = None
    """A list in `SpeechStarted` and `UtteranceEnd`."""
    start: float | None = None
    duration: float | None = None
    is_final: bool = False
    speech_final: bool = False
    from_finalize: bool = False
    code: str = ""
    variant: str = ""


_nova = msgspec.json.Decoder(NovaMessage)


class NovaStream(ListenStream):
    """/v1/listen. `Finalize` asks for the end of a part, `from_finalize` answers."""

    ask = '{"type":"Finalize"}'

    def take(self, message: str) -> None:
        found = _nova.decode(message)
        if found.type == "Results":
            self._results(found)
        elif found.type == "UtteranceEnd" and not self._parts[0].open:
            self.turn_ended()
        elif found.type == "Error":
            raise stated(found.code or found.variant)

    def _results(self, found: NovaMessage) -> None:
        alternatives = found.channel.alternatives if isinstance(found.channel, Channel) else []
        text = alternatives[0].transcript.strip() if alternatives else ""
        placed = found.start is not None and found.duration is not None
        end_s = (found.start or 0.0) + (found.duration or 0.0)
        if placed and end_s <= self._done_s + SAME_S / 2:
            return  # of a part that is done
        news, self._heard_s = end_s > self._heard_s, max(self._heard_s, end_s)
        while (part := self._parts[0]).end_s is not None and end_s > part.end_s + SAME_S:
            self._deliver(part)  # it hears the next one already
        part.open = "" if found.is_final else text
        if found.is_final:
            part.add(text)
        if found.from_finalize and part.end_s is not None and (not placed or end_s >= part.end_s - SAME_S):
            part.answered = True
            self.settle()
        elif found.speech_final and self.endpointing:
            self.turn_ended()
        elif text or news:
            self.interim()

    def is_done(self, part: Part) -> bool:
        if part.answered:
            return True
        return part.nudges > 2 and (part.dropped or (not part.open and part.is_heard(self._heard_s)))

    def nudge(self, part: Part) -> None:
        if part.nudges <= 2:
            self._hush(SILENCE)
            if not self._part_bytes:
                self._parts[-2].end_s = self._fed_bytes / BYTES_PER_S
            self.send(self.ask)

    def keep_alive(self) -> None:
        self.send('{"type":"KeepAlive"}')
