"""Logs: structured, JSON or console, one line an event. What a caller said never goes into one, nor an API key."""

import logging
import re
import sys

import structlog


def configure(level: str, form: str) -> None:
    """Set up logging for this process. `form`: `console`, `json`, or `auto` for console on a terminal."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)  # others show variables
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.StackInfoRenderer(),
    ]
    if not console:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, renderer, _without_secrets],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(_Libraries("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
    logging.getLogger("aiohttp.server").addFilter(_not_the_callers_fault)


_SECRET = re.compile(r"(mesh_[a-z2-7]{13})_[a-z2-7]{52}")


def without_secrets(text: str) -> str:
    """`text` with no API key in it but its id: a library may quote what a caller sent."""
    return _SECRET.sub(r"\1_…", text)


def _without_secrets(logger: object, method: str, line: object) -> str:
    return without_secrets(str(line))


class _Libraries(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _not_the_callers_fault(record: logging.LogRecord) -> bool:
    """False for requests that are no HTTP: the server logs a traceback for each, and anybody may send any number."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ not in _BAD_REQUESTS


_BAD_REQUESTS = frozenset(
    "BadHttpMessage BadHttpMethod BadStatusLine ContentEncodingError ContentLengthError InvalidHeader LineTooLong "  # noqa: SIM905
    "InvalidURLError RequestPayloadError TransferEncodingError".split()
)
"""By name: their classes would cost every command that logs the import of an HTTP server."""
