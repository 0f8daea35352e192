"""TCP ports of this machine: which are free, and who holds the others."""

import contextlib
import socket
import sys
from pathlib import Path

_LISTEN = "0A"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now. Somebody may take it before you do: be ready to try again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `host:port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    if sys.platform != "linux":  # others let two processes listen, one on every address and one on this
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex((host, port)) != 0
    return True


def choose_port(host: str, preferred: int) -> int:
    """`preferred` when it is free (and not 0), else any free port."""
    return preferred if preferred and is_free(host, preferred) else free_port(host)


def port_owner_hint(port: int) -> str:
    """Who listens on `port`, for an error message: `pid 4711 (nats-server)`. Empty when that cannot be told.

    Linux only, and only processes that we may look into. Arguments are left out: they may hold secrets.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not wanted:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is not ours
            if any(str(link.readlink()) in wanted for link in (process / "fd").iterdir()):
                return f"pid {process.name} ({_command(process)})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(words[9])
    return inodes


def _command(process: Path) -> str:
    """The program's name, and what it runs when it is Python."""
    words = (process / "cmdline").read_text(errors="replace").split("\0")
    program = Path(words[0]).name
    if program.startswith("python"):
        what = words[1:3] if words[1:2] == ["-m"] else words[1:2]
        if what and (what[0] == "-m" or not what[0].startswith("-")):
            return " ".join([program, *what])
    return program
