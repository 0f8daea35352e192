"""`meshag demo`: recorded speech into a running mesh, in real time; the conversation as it happens; the answer."""

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from meshag import clock
from meshag.audio import FRAME_MS, RATE_HZ, Framer, Resampler, duration_ms, read_wav, write_wav
from meshag.commands.common import add_url, ask, program, stranger, url_from
from meshag.commands.session import read_file
from meshag.commands.signals import stopping
from meshag.errors import ConfigError, MeshError

OUT_HZ = 24_000
ANSWER_S = 60.0
"""How long an answer may take altogether."""

SILENCE = bytes(2 * RATE_HZ * FRAME_MS // 1000)

INDENT = 9
"""Columns before what was said."""

BYE_S = 5.0
"""How long the mesh may take to close the call."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag demo`."""
    add_url(parser)
    add_demo_arguments(parser)
    parser.epilog = (
        "examples:\n  meshag demo --wav my-question.wav --out answer.wav\n"
        '  meshag demo --ask "What is the capital of France?" --port-base 9081\n\n'
        "exit status: 0 it answered; 1 an answer was empty, or a stage failed, or no mesh is there"
    )


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said and where the answer goes."""
    parser.add_argument(
        "--wav", action="append", default=[], metavar="FILE", help="a mono 16-bit recording to play; may be repeated"
    )
    parser.add_argument(
        "--ask", action="append", default=[], metavar="TEXT", help="a question to type instead; may be repeated"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the session's configuration, as for `meshag session create`; - for stdin"
    )
    parser.add_argument(
        "--out", default="answer.wav", metavar="FILE", help="where the spoken answer is written (default answer.wav)"
    )


def run(args: argparse.Namespace) -> int:
    """Talk to a running mesh."""
    url, script, show = url_from(args), prepare(args), Show()
    with stopping() as signals:
        status = asyncio.run(until_signal(converse(url, script, show), signals))
    if status is None:
        return 128 + (signals.came or signal.SIGINT)
    say_next(show, script.out, "demo", where(args))
    return status


@dataclass
class Script:
    """What a demonstration says."""

    recordings: list[tuple[str, bytes]]
    """Title and PCM16 at 16 kHz."""
    questions: list[str]
    """Typed after them."""
    request: Any
    """What the session is made with: the JSON, as bytes or as values."""
    out: Path


def prepare(args: argparse.Namespace) -> Script:
    """Read and check everything that the command line names, before anything is started. Raises ConfigError."""
    out = Path(args.out).expanduser()
    place = out.parent
    if out.is_dir() or not place.is_dir() or not os.access(out if out.exists() else place, os.W_OK):
        raise ConfigError(f"--out: {out} cannot be written", path="--out", fix="name a file in a directory of yours")
    request: Any = read_file(args.config) if args.config else {"config": {}, "session_name": "demo"}
    return Script(_recordings(args.wav, args.ask), args.ask, request, out)


def _recordings(wavs: list[str], questions: list[str]) -> list[tuple[str, bytes]]:
    if wavs or questions:
        return [(Path(path).name, _pcm(Path(path))) for path in wavs]
    speech = resources.files("meshag.data").joinpath("speech")
    items = msgspec.json.decode(speech.joinpath("manifest.json").read_bytes())["items"]
    titles = {item["file"]: f"{item['attribution'].partition(' (theivr')[0]}: {item['file']}" for item in items}
    with resources.as_file(speech) as directory:
        return [(titles[name], _pcm(directory / name)) for name in ("jfk.wav", "question.wav")]


def _pcm(path: Path) -> bytes:
    try:
        pcm, rate_hz = read_wav(path)
        return Resampler(rate_hz, RATE_HZ).push(pcm, last=True)
    except (OSError, MeshError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--wav: {path} cannot be played: {why}",
            path="--wav",
            fix="a mono WAV file with 16-bit samples, as in: ffmpeg -i FILE -ac 1 -ar 16000 -sample_fmt s16 out.wav",
        ) from None


async def until_signal(work: Coroutine[Any, Any, int], signals: stopping) -> int | None:
    """The result of `work`, or None when a signal came before it was there; `work` is then cancelled."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    signals.on_signal = lambda: loop.call_soon_threadsafe(task.cancel)
    if signals.came is not None:  # before this line
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        if signals.came is None:
            task.cancel()
            raise
        return None
    finally:
        signals.on_signal = None


class Show:
    """Prints the conversation. On a terminal, interim transcripts are overwritten in place and no word is broken."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._open: str = ""
        """`interim` or `growing`: the last line is not ended."""
        self._column = 0

    @property
    def _columns(self) -> int:
        return max(40, shutil.get_terminal_size().columns)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._end_line()
        if self._live and text.startswith("  ") and len(text) >= self._columns:
            text = textwrap.fill(text, self._columns - 1, subsequent_indent=" " * INDENT, break_on_hyphens=False)
        print(text, flush=True)

    def interim(self, text: str) -> None:
        """A line that the next one replaces. It is cut to one row of the terminal: its end is what is new."""
        if self._live:
            if self._open == "growing":
                self._end_line()
            room = self._columns - INDENT - 1
            shown = text if len(text) <= room else "…" + text[1 - room :]
            print(f"\r\033[K\033[2m  ..     {shown}\033[0m", end="", flush=True)
            self._open = "interim"
        else:
            self.line(f"  ..     {text}   (interim)")

    def wait(self, what: str, seconds: float) -> None:
        """What the conversation waits for, and since when: on a terminal, where the next line replaces it."""
        if self._live and self._open != "growing":
            self.interim(f"({what}, {seconds:.0f} s)")

    def piece(self, text: str, *, first: bool) -> None:
        """The next piece of a line that grows."""
        if first or self._open != "growing":
            self._end_line()
            print("  AGENT  " if first else " " * INDENT, end="")
            self._column, self._open = INDENT, "growing"
            text = text.lstrip()
        for i, word in enumerate(text.replace("\n", " ").split(" ")):
            wanted = f" {word}" if i else word
            if self._live and i and self._column + len(wanted) >= self._columns:
                print("\n" + " " * INDENT, end="")
                self._column, wanted = INDENT, word
            print(wanted, end="")
            self._column += len(wanted)
        sys.stdout.flush()

    def close(self) -> None:
        """End the line that grows."""
        self._end_line()

    def _end_line(self) -> None:
        if self._open:
            print("\r\033[K" if self._open == "interim" else "\n", end="", flush=True)
            self._open = ""


@dataclass
class Heard:
    """What came back for one turn."""

    turn: int = 0
    typed: bool = False
    reply: list[str] = field(default_factory=list)
    speech_end_ms: int = 0
    times_ms: dict[str, int] = field(default_factory=dict)
    """When each stage began to speak, Unix ms."""
    model: str = ""
    asked: bool = False
    """The question is complete."""
    replied: bool = False
    """The reply's text is complete; it may still be being spoken."""
    over: bool = False

    @property
    def wanting(self) -> str:
        """What the caller waits for now."""
        if self.asked and not self.reply and not self.over:
            return "thinking"
        return "speaking" if self.replied and "tts" in self.times_ms and not self.over else ""


class Talk:
    """One session, from the caller's end."""

    def __init__(self, socket: Any, show: Show) -> None:
        self._socket = socket
        self._show = show
        self._changed = asyncio.Event()
        self._event_s = clock.monotonic_s()
        """When the last event came."""
        self.heard = Heard()
        self.audio = bytearray()
        self.problems: list[str] = []
        self.closed = False

    async def listen(self) -> None:
        """Take what comes until the connection ends."""
        try:
            async for message in self._socket:
                if isinstance(message.data, bytes):
                    self.audio += message.data
                elif isinstance(message.data, str):
                    self._on_event(msgspec.json.decode(message.data))
                self._changed.set()
        finally:
            self.closed = True
            self._changed.set()

    async def tell_waits(self) -> None:
        """Show what lasts longer than a second, until cancelled."""
        while True:
            await asyncio.sleep(1)
            since_s = clock.monotonic_s() - self._event_s
            if since_s >= 1 and (what := self.heard.wanting):
                self._show.wait(what, since_s)

    async def say(self, pcm: bytes) -> None:
        """Speak in real time, then be silent, as a microphone is, until the answer is over."""
        self.heard = Heard()
        framer, sent, began_s = Framer(), 0, clock.monotonic_s()
        frames = list(framer.push(pcm))
        while not self.heard.over:
            self._check_open()
            await self._socket.send_bytes(frames[sent] if sent < len(frames) else SILENCE)
            sent += 1
            await asyncio.sleep(max(0.0, began_s + sent * FRAME_MS / 1000 - clock.monotonic_s()))
            if sent < len(frames) and self.heard.over:
                self.heard = Heard()  # it answered a pause; the speaker goes on
            if clock.monotonic_s() - began_s > len(frames) * FRAME_MS / 1000 + ANSWER_S:
                raise _no_answer()

    async def type(self, text: str) -> None:
        """Type a question and wait until the answer is over."""
        self.heard = Heard(typed=True, asked=True, speech_end_ms=clock.wall_ns() // clock.MS)
        self._event_s = clock.monotonic_s()
        self._show.line(f"  YOU    {text}   (typed)")
        await self._socket.send_str(msgspec.json.encode({"type": "text", "text": text}).decode())
        try:
            async with asyncio.timeout(ANSWER_S):
                while not self.heard.over:
                    self._check_open()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise _no_answer() from None

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionResetError("the mesh closed the call")

    def _on_event(self, event: dict[str, Any]) -> None:
        kind, heard = event["type"], self.heard
        self._event_s = clock.monotonic_s()
        if kind == "transcript":
            if event["final"]:
                heard.times_ms["stt"] = event["t_ms"]
                self._show.line(f"  YOU    {event['text']}   (heard by {event['provider']})")
            else:
                self._show.interim(event["text"])
        elif kind == "turn_ended" and event["text"]:
            heard.turn, heard.asked = event["turn"], True
            if not heard.typed:
                heard.speech_end_ms = event["speech_end_ms"]
        elif kind == "reply_started":
            heard.model = f"{event['provider']}: {event['model']}"
        elif kind == "reply":
            heard.times_ms.setdefault("llm", event["t_ms"])
            self._show.piece(event["text"], first=not heard.reply)
            heard.reply.append(event["text"])
        elif kind == "reply_ended" and heard.reply:
            self._show.close()
            heard.replied = True
            if event["reason"] == "interrupted":
                self._show.line("         (interrupted: the caller spoke on)")
        elif kind == "speech_started":
            heard.times_ms["tts"] = event["t_ms"]
        elif kind == "speech_ended":
            heard.over = not event["interrupted"]
            if event["interrupted"]:
                self.heard = Heard()
        elif kind == "owner_changed":
            self._show.line(f"  -- {event['stage']} was taken over by worker {event['worker']} --")
        elif kind == "error":
            self.problems.append(f"{event.get('stage', 'transport')}: {event['message']}")
            self._show.line(f"  ERROR  {self.problems[-1]}")
            heard.over = heard.typed or heard.over


def _no_answer() -> MeshError:
    return MeshError(f"no answer came within {ANSWER_S:.0f} s", code="no_answer")


async def converse(url: str, script: Script, show: Show) -> int:
    """Play the recordings, then the questions. Returns the exit status: 1 when an answer was empty or a stage failed.

    Raises MeshError when there is no mesh, or it goes away, or gives no answer. May be cancelled; the session is ended.
    """
    import aiohttp

    try:
        created = await asyncio.to_thread(ask, "POST", f"{url}/sessions/with-config", script.request)
        session, room, token = created["session_id"], created["room_url"], created["token"]
    except (KeyError, TypeError):
        raise stranger(url) from None
    address = f"{room}?token={token}&rate={RATE_HZ}&out_rate={OUT_HZ}"
    closing = aiohttp.ClientWSTimeout(ws_close=2)
    wanting, talk = False, Talk(None, show)
    try:
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(address, max_msg_size=0, timeout=closing) as socket,
        ):
            talk = Talk(socket, show)
            listening, telling = asyncio.create_task(talk.listen()), asyncio.create_task(talk.tell_waits())
            try:
                for title, pcm in script.recordings:
                    seconds = duration_ms(pcm) / 1000
                    show.line(f"\n> {title} ({seconds:.1f} s of recorded speech, in real time)")
                    await talk.say(pcm)
                    wanting |= _report(show, talk.heard)
                for question in script.questions:
                    show.line("")
                    await talk.type(question)
                    wanting |= _report(show, talk.heard)
                await socket.send_str('{"type":"bye"}')
                await asyncio.wait({listening}, timeout=BYE_S)
            finally:
                show.close()
                listening.cancel()
                telling.cancel()
                await asyncio.gather(listening, telling, return_exceptions=True)
    except (aiohttp.ClientError, OSError) as error:
        why = f": {'; '.join(talk.problems)}" if talk.problems else ""
        raise MeshError(
            f"the call broke off ({error or type(error).__name__}){why}. Is the mesh still up? `{program()} doctor`",
            code="call_lost",
        ) from None
    finally:
        with suppress(MeshError):
            await asyncio.to_thread(ask, "DELETE", f"{url}/sessions/{session}", timeout_s=3)
    _write(show, script.out, bytes(talk.audio), talk.heard.model)
    if wanting or talk.problems or not any(talk.audio):
        show.line("\nThe demonstration failed: " + ("; ".join(talk.problems) or "an answer was empty") + ".")
        return 1
    return 0


def _report(show: Show, heard: Heard) -> bool:
    """Say when each stage began to speak. True when there was no answer."""
    began = [
        f"{stage} {heard.times_ms[stage] - heard.speech_end_ms} ms"
        for stage in ("stt", "llm", "tts")
        if stage in heard.times_ms and heard.speech_end_ms
    ]
    if began:
        since = "Enter" if heard.typed else "the end of your speech"
        show.line(f"         first output after {since}: {' · '.join(began)}")
    return not "".join(heard.reply).strip()


def _write(show: Show, out: Path, audio: bytes, model: str) -> None:
    try:
        write_wav(out, audio, OUT_HZ)
    except OSError as error:
        raise MeshError(f"{out} cannot be written: {error.strerror or error}", code="unwritable") from None
    show.line(f"\nThe agent's voice, {duration_ms(audio, OUT_HZ) / 1000:.1f} s: {out.resolve()}")
    if model:
        provider, _, name = model.partition(": ")
        on = ", on this machine" if provider == "local" else f", by {provider}"
        show.line(f"The answers came from {name}{on}. A stronger model: docs/models.md")


def where(args: argparse.Namespace) -> str:
    """What a further command line needs in order to mean the same mesh."""
    if getattr(args, "url", None):
        return f" --url {shlex.quote(args.url)}"
    return f" --port-base {args.port_base}" if args.port_base else ""


def say_next(show: Show, out: Path, command: str, place: str = "") -> None:
    """What to try next. `command`: the one that was run; empty when the mesh stays up and tells more itself."""
    player = next((name for name in ("ffplay", "aplay", "paplay", "afplay") if shutil.which(name)), "")
    if command or player:
        show.line("\nTry next:")
    if player:
        show.line(f"  {player} {shlex.quote(str(out))}")
    if command:
        tries = [
            (f'{command}{place} --ask "What is the capital of France?"', "type a question instead"),
            (f"{command}{place} --wav my-question.wav", "your own recording (mono, 16 bit)"),
            (f"doctor{place if '--port-base' in place else ''}", "what is installed and reachable"),
        ]
        if command == "run":
            tries.append((f"up{place}", "leave it running, with a page to talk to it"))
        say_commands(tries)


def say_commands(tries: list[tuple[str, str]]) -> None:
    """Commands to type, and what each is good for."""
    name, width = program(), max(len(command) for command, _ in tries)
    for command, what in tries:
        print(f"  {name} {command:<{width}}  {what}", flush=True)
