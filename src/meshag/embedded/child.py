"""A child process that ends no later than its parent, even when the parent is killed without warning."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from meshag.errors import MeshError

Way = Literal["auto", "bind", "watch"]
"""How a child is tied to its parent.

`bind`: the kernel kills it (Linux). It is tied to the *thread* that started it, so start it from the main thread.
`watch`: a small process beside it does, at the end of a pipe (every POSIX system, any thread).
`auto`: `bind` on Linux in the main thread, else `watch`.
"""

_LEASH = Path(__file__).with_name("leash.py")
_KILL_WAIT_S = 5.0


class Child:
    """A running child process. Its own children are its own care: give them a `Child` too.

    It stands in a session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends its children in
    the order it wants. Every way to end it is idempotent, reaps it and may be called in any order.
    """

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", pid: int) -> None:
        self.name = name
        """What messages call it."""
        self.pid = pid
        """Process id of the command itself, also behind a leash."""
        self._process = process

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        way: Way = "auto",
    ) -> "Child":
        """Start `argv` and return once it runs (15 to 40 ms) and is tied to this process.

        `env`: its whole environment; None: ours. `log_path`: both its outputs are appended there (mode 0600); None:
        they go where ours go. Its stdin is empty. Raises MeshError `child_failed` when it cannot be started.
        """
        if way == "auto":
            main = threading.current_thread() is threading.main_thread()
            way = "bind" if sys.platform == "linux" and main else "watch"
        reader, status = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, reader)
            output = None
            if log_path is not None:
                output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                stack.callback(os.close, output)
            try:
                # Not preexec_fn: running Python between fork and exec can deadlock where other threads live.
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_LEASH), way, str(os.getpid()), str(status), *argv],
                    stdin=subprocess.PIPE if way == "watch" else subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    pass_fds=(status,),
                    start_new_session=True,
                    bufsize=0,
                )
            finally:
                os.close(status)
            said = b""
            while piece := os.read(reader, 64):
                said += piece
        word, _, number = said.decode().partition(" ")
        child = cls(name, process, int(number) if word == "pid" else process.pid)
        if word == "error" or (way == "watch" and word != "pid"):
            child.kill()
            why = os.strerror(int(number)) if word == "error" else "its leash ended at once"
            raise MeshError(f"{name} cannot be started: {argv[0]}: {why}", code="child_failed")
        return child

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number when a signal ended it), or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._let_go()
        return code

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end. Returns its exit code, or None when it still runs after `timeout_s`."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._let_go()
        return code

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal. False when it has ended."""
        if self.poll() is not None:
            return False
        try:
            os.kill(self.pid, number)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            return False
        return True

    def terminate(self, grace_s: float = 5.0) -> int:
        """Ask it to end (SIGTERM), kill it when it still runs after `grace_s`. Returns its exit code."""
        if self.send(signal.SIGTERM):
            self.send(signal.SIGCONT)  # a frozen process cannot hear
            self.wait(grace_s)
        return self.kill()

    def kill(self) -> int:
        """End it now (SIGKILL). Returns its exit code."""
        self.send(signal.SIGKILL)
        self._let_go()
        code = self.wait(_KILL_WAIT_S)
        if code is None:  # the leash itself does not move: end the whole session of processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        return code

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP), as a hung process or machine would. Its sockets stay open."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self.send(signal.SIGCONT)

    def _let_go(self) -> None:
        """Close the leash's pipe: a leash that still runs kills the command."""
        if self._process.stdin is not None:
            self._process.stdin.close()
