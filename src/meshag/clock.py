"""Time, asked for in one place. Nothing else imports `time`."""

import time

MS = 1_000_000
"""Nanoseconds in a millisecond."""


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch. For reports only: it may jump. Order comes from sequence numbers."""
    return time.time_ns()


def wall_s() -> float:
    """Seconds since the Unix epoch, for expiry times that other machines read."""
    return time.time()


def monotonic_ns() -> int:
    """Nanoseconds on a clock that never goes back. For durations and deadlines within one process."""
    return time.monotonic_ns()


def monotonic_s() -> float:
    """The same, in seconds."""
    return time.monotonic()


def cpu_s() -> float:
    """CPU seconds this process has used."""
    return time.process_time()


def sleep_s(seconds: float) -> None:
    """Block the calling thread. For command-line tools; services use asyncio."""
    time.sleep(seconds)
