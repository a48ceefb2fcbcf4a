"""Logs: JSON lines with a request id, or readable lines on a terminal.

Lives here: the set-up of structlog and of the standard library's loggers, and redaction. Not here: what is logged, and
how lines get out without anybody waiting (`log_output.py`).

Invariants: everything goes to standard error; the values of keys that carry credentials never come out; no request or
response body is ever logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Literal

import orjson
import structlog

from antiphon.observability.log_output import LogOutput

_SECRET_KEYS = re.compile(r"authorization|api[-_]?key|secret|token$|password|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(Bearer\s+|\bsk-)[A-Za-z0-9._~+/=\-]{6,}", re.IGNORECASE)
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging for this process; `auto` is readable on a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = _LEVELS[level]
    _open_output(console=console)
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    last: list[structlog.typing.Processor]
    if console:
        colors = sys.stderr.isatty()
        # Tracebacks are text already, so that redaction sees them.
        last = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
    else:
        last = [structlog.processors.EventRenamer("message"), _render]
    structlog.configure(
        processors=[*before, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(number, logging.WARNING))
    # It warns with the subprotocols that a client offered, and browsers put keys there.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what could be a credential, by key and by shape, however deep."""
    for key, value in event.items():
        # Most values are short texts and numbers: this runs for every line.
        if isinstance(value, str) and not _of_secret(key) and not _looks_secret(value):
            continue
        if not isinstance(value, (int, float, type(None))):
            event[key] = _redacted(key, value)
    return event


@lru_cache(1024)
def _of_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def _looks_secret(value: str) -> bool:
    # What has neither of these has no match; looking for them is ten times cheaper.
    folded = value.casefold()
    return ("sk-" in folded or "bearer" in folded) and _SECRET_TEXT.search(value) is not None


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _redacted(str(name), part) for name, part in value.items()}
    if key != "event" and _SECRET_KEYS.search(key) and value is not None:
        return "[redacted]"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return _SECRET_TEXT.sub(r"\1[redacted]", value)
    if isinstance(value, (list, tuple)):
        # Headers are lists of pairs, whose first part is the name.
        if len(value) == 2 and isinstance(value[0], str) and _SECRET_KEYS.search(value[0]):
            return [value[0], "[redacted]"]
        return [_redacted(key, part) for part in value]
    return value


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event, default=str)
    except (TypeError, ValueError):
        # What a client sent may hold bytes that are no text; a line about it must still come out.
        return json.dumps(event, default=str).encode()


_out: LogOutput | None = None


def write_line(line: bytes) -> None:
    """A line that is made already, to where all log lines go. Never waits."""
    if _out is not None:
        _out.write(line)
        return
    # Standard error is none of the system's (a test's).
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.buffer.write(line + b"\n")
        sys.stderr.buffer.flush()


def dropped_lines() -> int:
    """How many lines nobody read in time."""
    return _out.lost if _out is not None else 0


def flush(seconds: float) -> None:
    """Wait until all lines are out, at most so long: before an end that runs no clean-up."""
    if _out is not None:
        _out.flush(seconds)


def _open_output(*, console: bool) -> None:
    global _out

    def tell(number: int) -> bytes:
        if console:
            return f"{number} log lines were dropped: nobody read them".encode()
        return _render(None, "", {"message": "log_lines_dropped", "level": "warning", "lines": number})

    if _out is not None:
        _out.close()
        _out = None
    with contextlib.suppress(OSError, ValueError):
        _out = LogOutput(sys.stderr.fileno(), tell)


class _Output:
    """Standard error, a line at a time."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, line: str | bytes) -> None:
        write_line(line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace"))

    debug = info = warning = warn = error = exception = critical = fatal = failure = log = msg


class _Forward(logging.Handler):
    """Takes what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        # Levels between the named ones exist in libraries; structlog knows the named ones.
        level = min(max(record.levelno // 10 * 10, 10), 50)
        log.log(level, record.getMessage(), logger=record.name, **error)
