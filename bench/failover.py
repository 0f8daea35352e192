"""Every fault at every stage: is the turn answered, and how much silence does it add?

A mesh of one worker a stage runs the documented session among stand-ins of its vendors; a recorded voice asks, in real
time. For each fault of a stage's first provider: one turn of one call, which finds it out, and one turn each of three
others right after it, which have been told: their median. The same with faults in the middle of the work; for speech
recognition these are those of a vendor that hears along over a socket.

    answered   the whole answer came and was spoken whole
    added_ms   end of speech to the first agent audio, beyond the median of turns without a fault
    hole_ms    the longest silence inside the answer

And for speech recognition: words wrong when the first provider dies in the middle of an utterance, and another one (the
local recogniser) hears it from its beginning, beside the words wrong when that one hears it alone.

    python -m bench failover                    print JSON
    python -m bench failover --table FILE       also put the table into FILE, between its two marks
"""

import argparse
import asyncio
import itertools
import json
import platform
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
ANSWER = "It left today. It comes by train at noon."
TURN_S = 40.0
AFTER = 3

BEFORE: dict[str, dict[str, Any]] = {
    "killed": {"refuse": True},
    "HTTP 500": {"status": 500},
    "HTTP 429, Retry-After 5": {"status": 429, "retry_after": "5"},
    "HTTP 401": {"status": 401},
    "hung: not even headers": {"mute": True},
    "headers, then nothing": {"headers_only": True},
    "a byte every 0.9 s": {"drip_s": 0.9},
    "binary garbage": {"garbage": "binary"},
    "an HTML page": {"garbage": "html"},
    "a line of 10 MB": {"garbage": "long_line"},
    "an empty answer": {"garbage": "empty"},
}
"""Faults before anything useful came."""

MIDWAY: dict[str, dict[str, Any]] = {
    "dies in mid-answer": {"cut_after": 3},
    "falls silent in mid-answer": {"silent_after": 3},
}
"""Faults after some of it came; for models and voices."""

MIDWAY_STT: dict[str, dict[str, Any]] = {
    "live: dies in mid-utterance": {"cut_after": 1},
    "live: falls silent in mid-utterance": {"silent_after": 1},
    "live: no answer to a connection": {"mute": True},
}
"""For a recogniser that hears along: after its first word, or not even that."""

LIVE = {"primary": "deepgram", "fallback": ["openai"], "config": {}}


def main(words: list[str]) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench failover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="stt,llm,tts", help="which stages (default: all)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a page with the two marks of the table")
    args = parser.parse_args(words)
    sys.path.insert(0, str(ROOT / "tests"))
    found = asyncio.run(measure(args.stages.split(",")))
    print(json.dumps(found, indent=2))
    if args.table:
        write_table(args.table, found)


async def measure(stages: list[str]) -> dict[str, Any]:
    """Run everything."""
    with tempfile.TemporaryDirectory() as directory:
        async with running(Path(directory)) as bench:
            usual = [await bench.turn() for _ in range(4)]
            bench.usual_ms = median(turn["first_ms"] for turn in usual[1:])
            rows = []
            for stage in stages:
                for name, faults in (BEFORE | (MIDWAY_STT if stage == "stt" else MIDWAY)).items():
                    print(f"{stage}: {name} …", file=sys.stderr, flush=True)
                    rows.append(await bench.row(stage, name, faults))
            words = await bench.words_wrong() if "stt" in stages else {}
    return {
        "benchmark": "failover",
        "python": platform.python_version(),
        "usual_first_audio_ms": round(bench.usual_ms),
        "rows": rows,
        "mid_utterance": words,
    }


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator["Bench"]:
    """Vendors, a mesh, and calls to it."""
    from conversations import mesh_in
    from meshag.models import store
    from meshag.models.catalogue import DEFAULT_STT, find
    from meshag.settings import default_cache_dir
    from vendors.town import Town

    model = find(DEFAULT_STT)
    home = store.home(model, directory / "cache")
    home.parent.mkdir(parents=True)
    home.symlink_to(store.home(model, default_cache_dir()))
    async with Town() as town, mesh_in(town, directory, MESHAG_LOG_LEVEL="error") as mesh:
        yield Bench(town, mesh)


class Bench:
    """One mesh among its vendors."""

    def __init__(self, town: Any, mesh: Any) -> None:
        self.town, self.mesh = town, mesh
        self.usual_ms = 0.0

    async def row(self, stage: str, name: str, faults: dict[str, Any]) -> dict[str, Any]:
        """One fault of one stage."""
        from conversations import mended

        await mended(self.town, self.mesh)
        stt = LIVE if name in MIDWAY_STT else None
        first = await self.turn(stage, faults, stt)
        after = [await self.turn(stage, faults, stt) for _ in range(AFTER)]
        self.town.heal()
        return {
            "stage": stage,
            "fault": name,
            "answered": [first["answered"], all(turn["answered"] for turn in after)],
            "added_ms": [
                round(ms - self.usual_ms) for ms in (first["first_ms"], median(turn["first_ms"] for turn in after))
            ],
            "hole_ms": [round(first["hole_ms"]), round(max(turn["hole_ms"] for turn in after))],
        }

    async def turn(
        self, stage: str = "", faults: dict[str, Any] | None = None, stt: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One turn of a call of its own, the fault there from before it speaks, for all that the call has opened.

        `stt`: the recognisers of the call, where they are not those of the documented session.
        """
        from conversations import OUT_HZ, Conversation
        from vendors import voice

        async with self.call(**({"stt": stt} if stt else {})) as caller:
            talk = Conversation(self.town, caller)
            if stt:
                self.town.deepgram.faults.set(**(faults or {}))
                if "mute" in (faults or {}):
                    self.town.deepgram.cut()
            elif stage:
                self.town.break_primary(stage, **(faults or {}))
            turn = await talk.take_turn(ANSWER, timeout_s=TURN_S)
            (ended,) = [event for event in turn if event["type"] == "turn_ended"]
            began = [event for event in turn if event["type"] == "speech_started"]
            heard, said = voice.words_in(talk.audio, OUT_HZ), voice.codes(ANSWER)
            answered = caller.reply(1).strip() == ANSWER and heard[-len(said) :] == said
            pieces = caller.audio_at
            holes = [b - a - size / 2 / OUT_HZ for (a, size), (b, _) in itertools.pairwise(pieces)]
            return {
                "answered": answered,
                "first_ms": began[0]["t_ms"] - ended["speech_end_ms"] if began else float("nan"),
                "hole_ms": max([0.0, *holes]) * 1000,
            }

    @asynccontextmanager
    async def call(self, **config: Any) -> AsyncIterator[Any]:
        """A caller in a session of its own, which ends with the call: a worker has only so many places."""
        from conversations import asked, created
        from meshes import join

        session = await created(self.mesh, **config)
        async with join(session) as caller:
            yield caller
        await asked(self.mesh, "DELETE", f"/sessions/{session['session_id']}")

    async def words_wrong(self) -> dict[str, Any]:
        """A recogniser dies after 1.5 s of each recording; another hears it from its beginning."""
        from conversations import RECORDINGS, Conversation, mended
        from meshag.audio import read_wav
        from wording import errors, words

        manifest = json.loads((RECORDINGS / "manifest.json").read_text())["items"]
        totals = {"words": 0, "wrong_alone": 0, "wrong_switched": 0}
        for item in manifest:
            pcm = read_wav(RECORDINGS / item["file"])[0]
            for kind, providers in (
                ("wrong_alone", {"primary": "local", "fallback": [], "config": {}}),
                ("wrong_switched", {"primary": "deepgram", "fallback": ["local"], "config": {}}),
            ):
                print(f"stt: {item['file']}, {kind} …", file=sys.stderr, flush=True)
                await mended(self.town, self.mesh)
                async with self.call(stt=providers, turns={"end_silence_ms": 1_500}) as caller:
                    talk = Conversation(self.town, caller)
                    taking = asyncio.create_task(talk.take_turn("I see.", pcm=pcm, timeout_s=TURN_S))
                    if kind == "wrong_switched":
                        await caller.wait_for("voice_started")
                        await asyncio.sleep(1.5)
                        self.town.deepgram.faults.set(refuse=True)
                        self.town.deepgram.cut()
                    turn = await taking
                finals = [event["text"] for event in turn if event["type"] == "transcript" and event["final"]]
                totals[kind] += errors(item["text"], " ".join(finals))
            totals["words"] += len(words(item["text"]))
        return totals


def write_table(page: Path, found: dict[str, Any]) -> None:
    """Put the figures between the page's marks."""
    lines = [
        "| stage | fault | answered | silence added, 1st call / those after it, ms | longest hole in the answer, ms |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        answered = " / ".join("yes" if one else "NO" for one in row["answered"])
        added, hole = (" / ".join(map(str, row[name])) for name in ("added_ms", "hole_ms"))
        lines.append(f"| {row['stage']} | {row['fault']} | {answered} | {added} | {hole} |")
    text = (
        f"Usual time from the end of speech to the first agent audio: {found['usual_first_audio_ms']} ms, of which 700 "
        "are the silence that ends a turn.\n\n" + "\n".join(lines)
    )
    if words := found["mid_utterance"]:
        text += (
            f"\n\nA recogniser that dies in the middle of an utterance: of {words['words']} words of recorded speech, "
            f"{words['wrong_switched']} are wrong when another one hears it from its beginning, "
            f"{words['wrong_alone']} when that one hears it alone."
        )
    before, _, rest = page.read_text("utf-8").partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- /table -->")
    page.write_text(f"{before}<!-- table -->\n{text}\n<!-- /table -->{after}", "utf-8")
