"""What the caller is about to hear, and how much of it was heard. Pure: driven by `take`, once every step."""

from collections import deque
from dataclasses import dataclass

from meshag.audio import Resampler, duration_ms
from meshag.frames import Played, Speech, SpeechEnded

STEP_MS = 40
"""Audio leaves for the caller in pieces of this length: half the system calls of 20 ms, and still within a blink."""

LEAD_MS = 3_000
"""How far the audio sent may run ahead of the caller's ear: what is left to hear when the voice's worker dies."""


@dataclass(slots=True)
class _Piece:
    turn: int
    n: int
    pcm: bytes
    """Empty: chunk `n` ends here, or with `last` the reply."""
    last: bool = False
    take: int = 0


class Playout:
    """Agent audio in, frames for the caller out, reports of what was heard beside."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self.step_bytes = 2 * rate_hz * STEP_MS // 1000
        """A step's length."""
        self._pieces: deque[_Piece] = deque()
        self._resampler: Resampler | None = None
        self._resampler_hz = 0
        self._got_turn = self._got_n = self._got_take = 0
        self._got_ms = 0.0
        self._chunk_ms: dict[tuple[int, int], int] = {}
        self._silenced = self._ended = 0
        self._take = 0
        self.turn = 0
        """The turn that is being heard; 0 before the first."""
        self.n = 0
        """Chunks of it heard to their end."""
        self.ms = 0
        """Heard of the chunk after those."""

    @property
    def playing(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._pieces)

    def add(self, frame: Speech) -> None:
        """Take agent audio; what the caller has been given already, as after a takeover, is dropped.

        A new take of a chunk replaces what is left of the former one: it is another voice, which begins the chunk anew.
        """
        if frame.turn <= max(self._silenced, self._ended) or frame.turn < self._got_turn:
            return
        start_ms = frame.offset * 1000 / frame.rate_hz
        pcm = frame.pcm
        if (frame.turn, frame.n) == (self._got_turn, self._got_n):
            if frame.take < self._got_take:
                return
            if frame.take > self._got_take:
                self._drop_take(frame.turn, frame.n)
            if start_ms < self._got_ms:
                skip = round((self._got_ms - start_ms) * frame.rate_hz / 1000)
                pcm = pcm[2 * skip :]
        elif (frame.turn, frame.n) < (self._got_turn, self._got_n):
            return
        if not pcm:
            return
        self._got_turn, self._got_n, self._got_take = frame.turn, frame.n, frame.take
        self._got_ms = start_ms + len(frame.pcm) / 2 * 1000 / frame.rate_hz
        if self._resampler is None or self._resampler_hz != frame.rate_hz:
            self._resampler, self._resampler_hz = Resampler(frame.rate_hz, self._rate_hz), frame.rate_hz
        self._append(_Piece(frame.turn, frame.n, self._resampler.push(pcm), take=frame.take))

    def _drop_take(self, turn: int, n: int) -> None:
        self._pieces = deque(piece for piece in self._pieces if (piece.turn, piece.n) != (turn, n))
        self._chunk_ms.pop((turn, n), None)
        self._resampler = None
        self._got_ms = 0.0

    def end(self, frame: SpeechEnded) -> None:
        """A chunk, or with `last` the reply, is complete. Said again, as after a takeover, it changes nothing."""
        if frame.turn <= max(self._silenced, self._ended) or frame.turn < self._got_turn:
            return
        if frame.turn == self._got_turn and frame.n < self._got_n and not frame.last:
            return
        if self._resampler is not None:
            rest = self._resampler.push(b"", last=True)
            self._append(_Piece(frame.turn, self._got_n, rest, take=self._got_take))
            self._resampler = None
        self._pieces.append(_Piece(frame.turn, frame.n, b"", last=frame.last))
        self._got_turn = frame.turn
        if frame.last:
            self._ended = frame.turn
        else:
            self._got_n, self._got_take, self._got_ms = frame.n + 1, 0, 0.0

    def _append(self, piece: _Piece) -> None:
        if piece.pcm:
            key = (piece.turn, piece.n)
            self._chunk_ms[key] = self._chunk_ms.get(key, 0) + duration_ms(piece.pcm, self._rate_hz)
            self._pieces.append(piece)

    def start_at(self, turn: int, n: int, ms: int) -> None:
        """The turn that is being heard is this one, and so far it was heard: by another playout, before this one."""
        self.turn, self.n, self.ms = turn, n, ms

    def take(self, most_bytes: int | None = None) -> tuple[bytes, list[Played]]:
        """The next step, or less when there is no more of its turn, and the replies that were heard to their end.

        `most_bytes`: in place of a step.
        """
        out = bytearray()
        done: list[Played] = []
        most = self.step_bytes if most_bytes is None else most_bytes
        while self._pieces and len(out) < most:
            piece = self._pieces[0]
            if piece.turn != self.turn:
                if out or done:
                    break  # what is told of the one turn stands before the other
                self.turn, self.n, self.ms, self._take = piece.turn, 0, 0, 0
            if piece.take != self._take:
                self.ms, self._take = 0, piece.take
            if piece.pcm:
                taken = piece.pcm[: most - len(out)]
                out += taken
                self.ms += duration_ms(taken, self._rate_hz)
                piece.pcm = piece.pcm[len(taken) :]
                if piece.pcm:
                    break
                self._pieces.popleft()
                continue
            self._pieces.popleft()
            if piece.last:
                done.append(Played(turn=piece.turn, n=piece.n, ms=0, chunk_ms=0, interrupted=False))
                self._chunk_ms.clear()
            else:
                self.n, self.ms, self._take = piece.n + 1, 0, 0
        return bytes(out), done

    def interrupt(self, turn: int) -> Played | None:
        """Fall silent for `turn` and every turn before it. What was heard of it; None when that was done before."""
        if turn <= self._silenced:
            return None
        self._silenced = turn
        self._pieces = deque(piece for piece in self._pieces if piece.turn > turn)
        self._resampler = None
        heard = self.turn == turn
        n, ms = (self.n, self.ms) if heard else (0, 0)
        chunk_ms = self._chunk_ms.get((turn, n), ms)
        self._chunk_ms = {key: value for key, value in self._chunk_ms.items() if key[0] > turn}
        return Played(turn=turn, n=n, ms=ms, chunk_ms=chunk_ms, interrupted=True)
