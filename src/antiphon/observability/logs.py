"""Configures logging: the process writes JSON lines with a request id, or readable lines on a terminal.

This module sets up structlog and the standard library's loggers. `log_lines.py` formats and redacts lines,
and writes them without blocking.

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

from antiphon.observability.log_lines import LogOutput, as_console, as_json, colors_wanted, render

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging for this process. The form `auto` means readable lines on a terminal, and JSON otherwise."""
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
    # aiohttp's WebSocket logger writes warnings that contain the subprotocols that a client sends. Browsers send API
    # keys as subprotocols.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


_out: LogOutput | None = None


class _Held(threading.local):
    lines: list[bytes] | None = None


_held = _Held()


def write_line(line: bytes) -> None:
    """Write a complete line to standard error. Never waits."""
    if _held.lines is not None:
        _held.lines.append(line)
    else:
        _write(line, 1)


@contextlib.contextmanager
def lines_together() -> Iterator[None]:
    """Collect the lines that this thread writes within the block, and write them together at the block's end."""
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
    # In tests, standard error may have no file descriptor.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.buffer.write(data + b"\n")
        sys.stderr.buffer.flush()


def dropped_lines() -> int:
    """Return the number of lines that were dropped because the process that reads the log was too slow or the disk was
    full."""
    return _out.lost if _out is not None else 0


def flush(seconds: float) -> None:
    """Wait until all lines are written, at most `seconds`. A process calls `flush` before it exits without any other
    cleanup."""
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
    """The logger class for structlog, which writes each line to standard error."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str | bytes) -> None:
        write_line(line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace"))

    debug = info = warning = warn = error = exception = critical = fatal = failure = log = msg


class _Forward(logging.Handler):
    """Forwards the log records of standard library loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        # Libraries also use numeric levels between the named levels, but structlog has only the named levels.
        level = min(max(record.levelno // 10 * 10, 10), 50)
        log.log(level, record.getMessage(), logger=record.name, **error)
