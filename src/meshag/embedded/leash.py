"""Runs a command that cannot outlive the process that asked for it. The standard library only.

    python leash.py bind  PARENT STATUS COMMAND...   Linux: asks the kernel for the signal, then becomes the command
    python leash.py watch PARENT STATUS COMMAND...   elsewhere: stays beside the command and kills it when stdin ends
    python -m meshag.embedded.leash COMMAND...       the second, by hand: the command ends with this stdin

PARENT is the process id that must stay alive. STATUS is an inherited file descriptor: `error <errno>` when the command
cannot be started, `pid <n>` for a watched one, nothing for a bound one (its pid is this one's).
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_S = 0.5


def bind(parent: int, status: int, argv: list[str]) -> int:
    """Become `argv`, to be killed by the kernel when the thread that started us ends."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew
        return 1
    # Python ignores the first two, and a shell the third for what a script runs with `&`: over exec that would stay.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.set_inheritable(status, False)  # the other end reads the end of the file when exec has worked
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(status, b"error %d" % (error.errno or 0))
    return 1


def watch(parent: int, status: int | None, argv: list[str]) -> int:
    """Run `argv` and kill it when stdin ends, holds anything, or `parent` is no longer our parent."""
    children: list[subprocess.Popen[bytes]] = []
    came: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(number)
        for one in children:
            one.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)  # also so that the command does not inherit one that is ignored
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    except OSError as error:
        if status is None:
            raise
        os.write(status, b"error %d" % (error.errno or 0))
        return 1

    children.append(child)
    for early in tuple(came):
        child.send_signal(early)

    def guard() -> None:
        # A process that our parent forked may hold the pipe open, so the end of the pipe is not the only sign.
        while not select.select([0], [], [], _PARENT_CHECK_S)[0] and os.getppid() == parent:
            pass
        child.kill()

    if status is not None:
        os.write(status, b"pid %d" % child.pid)
        os.close(status)
    threading.Thread(target=guard, daemon=True).start()
    code = child.wait()
    if code < 0:  # end as it ended
        with contextlib.suppress(OSError):  # SIGKILL has no disposition to restore
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def main() -> int:
    if len(sys.argv) > 4 and sys.argv[1] in ("bind", "watch"):
        way, parent, status, *argv = sys.argv[1:]
        return (bind if way == "bind" else watch)(int(parent), int(status), argv)
    return watch(os.getppid(), None, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
