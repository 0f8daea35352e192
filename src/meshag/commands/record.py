"""`meshag record SESSION_ID`: a session's frames, configuration and history into one file."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from meshag.errors import ConfigError, MeshError
from meshag.ids import SessionId, parse_session_id
from meshag.recording.file import Header, Writer, create
from meshag.settings import Settings

WHERE = (
    "The mesh is the one whose servers NATS_URL and VALKEY_URL name. The file holds what was said: only you may\n"
    "read it, until you change that."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag record`."""
    parser.epilog = (
        f"{WHERE}\n\nAudio is kept for one minute only: a whole conversation can only be had with --follow, from its\n"
        "beginning.\n\nexamples:\n  meshag record SESSION_ID --follow\n  meshag record SESSION_ID -o last-minute.mesh"
    )
    parser.add_argument("session", metavar="SESSION_ID", help="as `meshag session list` shows it")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="a new file (default: SESSION_ID.mesh)")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the session ends, or Ctrl-C; the call does not notice"
    )


def run(args: argparse.Namespace) -> int:
    """Record. Exit status 0 when the file is whole, also after Ctrl-C."""
    session = parse_session_id(args.session)
    if session is None:
        raise ConfigError(
            f"'{args.session}' is no session's id", path="SESSION_ID", fix="take one from `meshag session list`"
        )
    path = args.out or Path(f"{session}.mesh")
    file = create(path)
    written = False
    try:
        with file:
            frames, reason = asyncio.run(_record(session, file, follow=args.follow, name=str(path)))
            written = True
    except OSError as error:
        raise MeshError(f"{path} takes no more: {error.strerror or error}") from None
    finally:
        if not written and path.stat().st_size == 0:
            path.unlink()
    print(f"{path}: {frames} frames ({reason}). Look at it with `meshag show {path}`.")
    return 0


async def _record(session: SessionId, file: BinaryIO, *, follow: bool, name: str) -> tuple[int, str]:
    from meshag import clock
    from meshag.recording.recorder import record

    settings = Settings()
    writer = Writer(file, Header(session, recorded_at_ns=clock.wall_ns(), followed=follow))
    stop: asyncio.Event | None = None
    if follow:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"Recording to {name} until the session ends. Ctrl-C stops the recording.", file=sys.stderr, flush=True)
    reason, missed = await record(settings.nats_url, settings.valkey_url, session, writer, stop=stop)
    writer.close(reason)
    if missed:
        print(f"{missed} frames were heard that the journal did not store.", file=sys.stderr)
    return writer.frames, reason
