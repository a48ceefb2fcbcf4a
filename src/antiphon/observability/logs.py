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
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import orjson
import structlog

from antiphon.observability.log_output import LogOutput

_SECRET_KEYS = re.compile(r"authorization|api[-_]?key|secret|token$|password|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(Bearer\s+|\bsk-)[A-Za-z0-9._~+/=\-]{6,}", re.IGNORECASE)
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_NAMES = {number: name for name, number in _LEVELS.items()}
_processors: list[structlog.typing.Processor] = []
"""What `configure` gave to structlog, which keeps the list itself."""


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging for this process; `auto` is readable on a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = _LEVELS[level]
    _open_output(console=console)
    processors: list[structlog.typing.Processor] = [_as_json]
    if console:
        colors = sys.stderr.isatty()
        processors = [
            structlog.processors.add_log_level,
            _stamp,
            # Tracebacks are text already, so that redaction sees them.
            structlog.processors.format_exc_info,
            redact,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
        ]
    global _processors
    _processors = processors
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(number, logging.WARNING))
    # It warns with the subprotocols that a client offered, and browsers put keys there.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


def write_event(log: Any, level: int, event: str, told: dict[str, Any]) -> None:
    """`log.log(level, event, **told)`, of a logger that has no context and lets that level pass. Takes `told` over."""
    # Where every line is made in one step and somebody has not put another in its place (a test), structlog's own steps
    # to there are half of what a line costs.
    if _processors == [_as_json] and structlog.get_config()["processors"] is _processors:
        told["event"] = event
        write_line(_as_json(log, _NAMES[level], told))
    else:
        log.log(level, event, **told)


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what could be a credential, by key and by shape, however deep."""
    for key, value in event.items():
        if not isinstance(value, (int, float, type(None))):
            event[key] = _redacted(key, value)
    return event


def _as_json(_: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
    """The whole line in one step: this runs for every response, and seven steps cost three times as much."""
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(_, level, event)
    plain = _PLAIN.issuperset(map(type, event.values())) and not any(map(_of_secret, event))
    if not plain:
        redact(_, level, event)
    message = event.pop("event", "")
    event["level"] = level
    _stamp(_, level, event)
    event["message"] = message
    line = _render(event)
    if plain and _may_hold_secrets(line):
        return _render(redact(_, level, event))
    return line


def _stamp(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When it was: now, or at the time (seconds of the epoch) that the line of something past brings."""
    at = event.pop("timestamp", None)
    when = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    event["timestamp"] = when.isoformat().replace("+00:00", "Z")
    return event


_PLAIN = frozenset({str, int, float, bool, type(None)})
"""What is in a line as it is, but for texts that have the shape of a credential."""


@lru_cache(1024)
def _of_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def _may_hold_secrets(line: bytes) -> bool:
    """Whether `_SECRET_TEXT` must look: not where no `sk-`, and no space after a `Bearer`, can be in the line."""
    # One look at a whole line is cheaper than one at each of its texts. A backslash may stand for a space, and the
    # expression takes some letters beyond ASCII for those of ASCII.
    return b"k-" in line or b"K-" in line or b" " in line or b"\\" in line or not line.isascii()


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


def _render(event: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event, default=str)
    except (TypeError, ValueError):
        # What a client sent may hold bytes that are no text; a line about it must still come out.
        return json.dumps(event, default=str).encode()


_out: LogOutput | None = None


class _Held(threading.local):
    lines: list[bytes] | None = None


_held = _Held()


def write_line(line: bytes) -> None:
    """A line that is made already, to where all log lines go. Never waits."""
    if _held.lines is not None:
        _held.lines.append(line)
    else:
        _write(line, 1)


@contextlib.contextmanager
def lines_together() -> Iterator[None]:
    """What this thread writes within a block leaves at its end, in one write; the block waits for nothing."""
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
    # Standard error is none of the system's (a test's).
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.buffer.write(data + b"\n")
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
        return _render({"message": "log_lines_dropped", "level": "warning", "lines": number})

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
