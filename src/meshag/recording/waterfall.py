"""A timeline for a terminal."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

from meshag.recording.timeline import Event, Timeline, Turn

BAR = 28
"""Columns of the waterfall."""

WIDTH = 118


def lines(told: Timeline) -> Iterator[str]:
    """The timeline, line by line. Nothing in it moves the cursor, whatever was said."""
    made = datetime.fromtimestamp(told.recorded_at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"session {_clean(told.session)}  {_clean(told.pipeline)}  {told.length_ms / 1000:.1f} s"
    yield f"recorded {made} by MeshAG {_clean(told.recorded_with)}: {_clean(told.ended)}"
    for turn in told.turns:
        yield ""
        yield from _turn(turn)
    yield ""
    yield from _totals(told)


def _turn(turn: Turn) -> Iterator[str]:
    head = f"turn {turn.turn}" if turn.turn else "before the first turn"
    parts = [head, turn.kind]
    if turn.voice_to_voice_ms is not None:
        parts.append(f"voice to voice {turn.voice_to_voice_ms:.0f} ms")
    if turn.interrupted:
        parts.append("interrupted")
    yield "  ".join(part for part in parts if part)
    if turn.user:
        yield _cut(f"  caller  {_clean(turn.user)}")
    if turn.reply:
        yield _cut(f"  agent   {_clean(turn.reply)}")
    if turn.interrupted:
        yield _cut(f"  heard   {_clean(turn.heard or 'nothing')}")
    if not turn.events:
        return
    begin = min(event.at_ms for event in turn.events)
    end = max(event.at_ms + event.lasts_ms for event in turn.events)
    zero = begin if turn.speech_end_ms is None else turn.speech_end_ms
    for event in turn.events:
        yield _cut(_row(event, begin, end, zero))


def _row(event: Event, begin_ms: float, end_ms: float, zero_ms: float) -> str:
    """One event: milliseconds after the caller had finished, its place in the turn, what it was and whose work."""
    scale = BAR / max(1.0, end_ms - begin_ms)
    start = min(BAR - 1, int((event.at_ms - begin_ms) * scale))
    length = max(1, min(BAR - start, round(event.lasts_ms * scale)))
    mark = "█" if event.lasts_ms else "▏"
    bar = (" " * start + mark * length).ljust(BAR)
    lasts = f"{event.lasts_ms:.0f} ms" if event.lasts_ms >= 1 else ""
    whose = " ".join(part for part in (event.stage, event.worker, event.provider) if part)
    text = "  ".join(part for part in (lasts, _clean(event.detail)) if part)
    return f"  {event.at_ms - zero_ms:+9.1f} │{bar}│ {_clean(event.what):<13} {_clean(whose):<31} {text}".rstrip()


def _totals(told: Timeline) -> Iterator[str]:
    totals = told.totals
    wait = totals["voice_to_voice_ms"]
    yield (
        f"{totals['turns']} turns, {totals['interrupted']} interrupted, {totals['failures']} failures, "
        f"{totals['owners_replaced']} owners replaced"
    )
    if wait:
        yield f"voice to voice p50 {wait['p50']:.0f} ms, at most {wait['max']:.0f} ms"
    yield (
        f"{totals['caller_audio_ms'] / 1000:.1f} s of caller audio, {totals['agent_audio_ms'] / 1000:.1f} s of agent "
        f"audio, {sum(totals['frames'].values())} frames"
    )
    for name, what in (
        ("frames_dropped", "dropped: repeated, or of an owner that had been replaced"),
        ("frames_not_stored", "heard, but not in the journal"),
        ("frames_unknown", "of a later version, passed over"),
    ):
        if totals[name]:
            yield f"{totals[name]} frames {what}"


def _clean(text: str) -> str:
    """What cannot do anything to a terminal."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in text)


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
