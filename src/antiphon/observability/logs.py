"""Configures logging: JSON lines with a request id, or readable lines on a terminal.

Lives here: the set-up of structlog and of the standard library's loggers. Not here: the events, the form of a line and
redaction (`log_lines.py`), non-blocking output (`log_output.py`).

Invariants: all lines go to standard error. No request or response body is ever logged.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Literal

import structlog

from antiphon.observability.log_lines import as_console, as_json, colors_wanted, render
from antiphon.observability.log_output import LogOutput

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging for this process; `auto` is readable on a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = _LEVELS[level]
    _open_output(console=console)
    structlog.configure(
        processors=[partial(as_console, colors=colors_wanted()) if console else as_json],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(number, logging.WARNING))
    # It warns with the subprotocols of a client, and browsers put API keys there.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


_out: LogOutput | None = None


class _Held(threading.local):
    lines: list[bytes] | None = None


_held = _Held()


def write_line(line: bytes) -> None:
    """Write a complete line to the common output. Never waits."""
    if _held.lines is not None:
        _held.lines.append(line)
    else:
        _write(line, 1)


@contextlib.contextmanager
def lines_together() -> Iterator[None]:
    """Lines that this thread writes within the block are written together at its end; the block waits for nothing."""
    _held.lines = []
    try:
        yield
    finally:
        lines, _held.lines = _held.lines, None
        if lines:
            _write(b"\n".join(lines), len(lines))


def _write(data: bytes, lines: int) -> None:
    if _out is not None:
        _out.write(data, lines)
        return
    # Standard error is not a file descriptor (in a test).
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.buffer.write(data + b"\n")
        sys.stderr.buffer.flush()


def dropped_lines() -> int:
    """The number of lines that were dropped because the reader was too slow."""
    return _out.lost if _out is not None else 0


def flush(seconds: float) -> None:
    """Wait until all lines are written, at most `seconds`: for an end without clean-up."""
    if _out is not None:
        _out.flush(seconds)


def _open_output(*, console: bool) -> None:
    global _out

    def tell(number: int) -> bytes:
        if console:
            return (
                f"{number} log lines were dropped: the reader of standard error was too slow or its disk was full"
            ).encode()
        return render({"message": "log_lines_dropped", "level": "warning", "lines": number})

    if _out is not None:
        _out.close()
        _out = None
    with contextlib.suppress(OSError, ValueError):
        _out = LogOutput(sys.stderr.fileno(), tell)


class _StderrLogger:
    """Writes to standard error, one line at a time."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str | bytes) -> None:
        write_line(line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace"))

    debug = info = warning = warn = error = exception = critical = fatal = failure = log = msg


class _Forward(logging.Handler):
    """Forwards the standard library's log records."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        # Libraries have levels between the named ones; structlog knows only the named ones.
        level = min(max(record.levelno // 10 * 10, 10), 50)
        log.log(level, record.getMessage(), logger=record.name, **error)
