"""Temporary directories of processes that may be killed without warning: the next one removes what they left."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "meshag-"

_LOCK = "owner.lock"
"""Locked as long as the owner lives. The kernel lets go of it when the owner dies, however it dies."""


class Scratch:
    """A private directory under the system's temporary one, with what must not stay: journals, passwords, logs."""

    def __init__(self) -> None:
        """Make it, after removing those whose owners are dead."""
        remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        """Mode 0700."""
        new = self.path / f"{_LOCK}.new"
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / _LOCK)  # nobody sees it unlocked

    def subdir(self, name: str) -> Path:
        """A private directory within."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def remove(self) -> None:
        """Remove it with everything in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_left() -> None:
    """Remove the directories of this user's dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it lives (the lock is held), or is no directory of ours
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
