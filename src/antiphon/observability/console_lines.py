"""Formats a log line for a person at a terminal.

Lives here: the format: time, level unless it is `info`, event, and for a response its model, outcome, tokens, seconds
and id. Not here: the content of log lines, redaction (`log_lines.py`), the output (`log_output.py`).

Invariant: text from a client or an upstream reaches the terminal without control characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

_DIM, _BOLD, _RED, _GREEN, _YELLOW, _END = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_OF_LEVEL: Final = {"debug": _DIM, "info": _BOLD, "warning": _YELLOW, "warn": _YELLOW}
_INDENT: Final = " " * 10
_NAMED: Final = frozenset({"timestamp", "level", "message", "event", "process", "advice", "exception"})
_GOOD: Final = frozenset({"completed", "ok", "incomplete"})


def console_line(line: Mapping[str, Any], *, colors: bool) -> str:
    """The line; the advice and a traceback follow on lines of their own."""
    paint = _painted if colors else _plain
    name = str(line.get("message", line.get("event", "")))
    parts = [paint(_time(line.get("timestamp")), _DIM)]
    level = str(line.get("level", "info"))
    if level != "info":
        parts.append(paint(_shown(level), _OF_LEVEL.get(level, _RED)))
    if name == "response":
        parts += _response(line, paint)
    elif name == "request":
        parts += _request(line, paint)
    else:
        parts.append(paint(_shown(name, spaced=True), _OF_LEVEL.get(level, _RED)))
        if "process" in line:
            parts.append(f"[{_shown(line['process'], spaced=True)}]")
        parts += [f"{_shown(key)}={_shown(value)}" for key, value in line.items() if key not in _NAMED]
    below = []
    if line.get("advice"):
        below.append(f"{_INDENT}→ {_shown(line['advice'], spaced=True)}")
    if line.get("exception"):
        below += [_shown(one, spaced=True) for one in str(line["exception"]).splitlines()]
    return "\n".join(["  ".join(part for part in parts if part), *below])


def _response(line: Mapping[str, Any], paint: Any) -> list[str]:
    outcome = str(line.get("outcome", ""))
    parts = [_shown(line.get("model", "")), paint(_shown(outcome), _GREEN if outcome in _GOOD else _RED)]
    if "output_tokens" in line or "input_tokens" in line:
        parts.append(f"{_shown(line.get('input_tokens', 0))}+{_shown(line.get('output_tokens', 0))} tokens")
    parts += [_seconds(line), _shown(line.get("response_id", line.get("request_id", "")))]
    return parts + _why(line)


def _request(line: Mapping[str, Any], paint: Any) -> list[str]:
    status = line.get("status", 0)
    good = isinstance(status, int) and status < 400
    parts = [
        paint(_shown(status), _GREEN if good else _RED),
        f"{_shown(line.get('method', ''))} {_shown(line.get('path', ''))}",
    ]
    return [*parts, _seconds(line), _shown(line.get("request_id", "")), *_why(line)]


def _why(line: Mapping[str, Any]) -> list[str]:
    """The cause of a failure, and the parts of the request that Antiphon left out."""
    parts = [_shown(line["cause"], spaced=True)] if line.get("cause") else []
    if line.get("left_out"):
        parts.append(f"left_out={_shown(line['left_out'])}")
    return parts


def _seconds(line: Mapping[str, Any]) -> str:
    seconds = line.get("seconds")
    return f"{seconds:.2f} s" if isinstance(seconds, int | float) else ""


def _time(stamp: object) -> str:
    """The local time of day."""
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return " " * 8


def _shown(value: object, *, spaced: bool = False) -> str:
    """The value as text; quoted and escaped if it has control characters, or spaces unless `spaced`."""
    text = str(value)
    return text if text.isprintable() and (spaced or " " not in text) else repr(text)


def _painted(text: str, color: str) -> str:
    return f"{color}{text}{_END}"


def _plain(text: str, color: str) -> str:
    return text
