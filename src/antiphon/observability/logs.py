"""Logs: JSON lines with a request id, or readable lines on a terminal.

Lives here: the set-up of structlog and of the standard library's loggers, and redaction. Not here: what is logged.

Invariants: everything goes to standard error; the values of keys that carry credentials never come out; no request or
response body is ever logged.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import orjson
import structlog

__all__ = ["configure"]

_SECRET_KEYS = re.compile(r"authorization|api_?key|secret|token$|password|cookie", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(Bearer\s+|sk-)[A-Za-z0-9._\-]{6,}")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging for this process; `auto` is readable on a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = _LEVELS[level]
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    if console:
        structlog.configure(
            processors=[*before, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[*before, structlog.processors.EventRenamer("message"), _render],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
            cache_logger_on_first_use=True,
        )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(number, logging.WARNING))


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what could be a credential, by key and by shape."""
    for key, value in event.items():
        if isinstance(value, str):
            if key != "event" and _SECRET_KEYS.search(key):
                event[key] = "[redacted]"
            elif "earer" in value or "sk-" in value:
                event[key] = _SECRET_TEXT.sub(r"\1[redacted]", value)
        elif _SECRET_KEYS.search(key) and not isinstance(value, (int, float, bool, type(None))):
            event[key] = "[redacted]"
    return event


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    return orjson.dumps(event, default=str)


class _Forward(logging.Handler):
    """Takes what libraries log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        log.log(max(record.levelno, 10), record.getMessage(), logger=record.name, **error)
