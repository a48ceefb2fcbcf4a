"""Formats and redacts log lines, as JSON or for a terminal, and writes them without blocking the caller.

A terminal line shows the time, the level unless it is `info`, and the event. For a response the line shows the model,
the outcome, the tokens, the seconds and the shortened response id, which fit into 80 columns. The cause of a failure
follows on a separate line. `logs.py` sets up structlog. The module remembers the newest warnings, so that the console
can show them.

While the pipe of standard error has room, `LogOutput.write` writes a line to the pipe immediately. When the pipe is
full, the line waits in a queue for a thread. All lines to a file use the queue, because a disk may hang.

Invariants: no line contains the value of a field with a name like `api_key`, or a text with the shape of a credential.
Text from a client or an upstream reaches a terminal without control characters. No caller waits. The queue holds at
most `max_bytes`. `LogOutput` drops and counts the lines that do not fit into the queue, and the lines that a full disk
rejects. When the queue has room again, a separate line reports the number of dropped lines. Lines are complete and in
order; only the last line before a full disk may be truncated.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec
import structlog

from antiphon.ids import shortened
from antiphon.redaction import KEYS, SHORTEST_KEY

_SECRET_KEYS: Final = re.compile(r"authorization|api[-_]?key|secret|token$|password|cookie", re.IGNORECASE)
_SECRET_TEXT: Final = re.compile(r"(Bearer\s+|\bsk-)[A-Za-z0-9._~+/=\-]{6,}", re.IGNORECASE)

_LOUD: Final = frozenset({"warning", "error", "critical", "exception"})
_recent: deque[Mapping[str, object]] = deque(maxlen=200)


def _redact(event: MutableMapping[str, object]) -> None:
    """Redact every value in the event, at any depth, that could be a credential because of its field's name or its own
    form."""
    for key, value in event.items():
        if not isinstance(value, (int, float, type(None))):
            event[key] = _redacted(key, value)


def as_json(_: object, level: str, event: MutableMapping[str, object]) -> bytes:
    """Format an event as one JSON line. One function formats the whole line, because this code runs for every response.
    A chain of seven structlog processors would take three times as long."""
    return render(_complete(level, event))


def as_console(_: object, level: str, event: MutableMapping[str, object], *, colors: bool) -> str:
    """Format an event as a line for a terminal."""
    return console_line(_complete(level, event), colors=colors)


def _complete(level: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    if "exc_info" in event:
        # Redaction works on text, so the traceback becomes text first.
        event = structlog.processors.format_exc_info(None, level, event)
    if not _PLAIN.issuperset(map(type, event.values())) or _any_of_secret(tuple(event)) or _holds_secret(event):
        _redact(event)
    message = event.pop("event", "")
    event["level"] = level
    stamp(event)
    event["message"] = message
    if level in _LOUD:
        _recent.append(dict(event))
    return event


def recent_warnings() -> list[Mapping[str, object]]:
    """The fields of the newest 200 lines of this process at `warning` or above, redacted, newest first."""
    return list(reversed(_recent))


def stamp(event: MutableMapping[str, object]) -> None:
    """Set the event's timestamp. If the event happened earlier, its field `timestamp` has that time in seconds since
    the epoch. Without this field, the current time becomes the timestamp."""
    at = event.pop("timestamp", None)
    micros = round((at if isinstance(at, (int, float)) else time.time()) * 1e6)
    event["timestamp"] = f"{_to_the_second(micros // 1_000_000)}.{micros % 1_000_000:06d}Z"


@lru_cache(64)
def _to_the_second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().removesuffix("+00:00")


_encode: Final = msgspec.json.Encoder().encode

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""The types of values that a line shows unchanged. Among these values, only texts with the shape of a credential are
redacted."""


@lru_cache(1024)
def _any_of_secret(keys: tuple[str, ...]) -> bool:
    return any(_SECRET_KEYS.search(key) for key in keys)


_OURS: Final = frozenset({"response_id", "owner", "door", "outcome"})
"""The names of log fields whose texts come from the process itself. Each log line of a response has these fields. The
search for credentials skips their texts, which would take most of the search's time."""


def _holds_secret(event: Mapping[str, object]) -> bool:
    """Return whether a text in the event has the shape of a credential. Most texts are too short to be a credential and
    are not searched."""
    for name, value in event.items():
        if type(value) is str and len(value) >= SHORTEST_KEY and name not in _OURS and _is_secret(value):
            return True
    return False


def _is_secret(text: str) -> bool:
    # Skip the search if the text contains no `sk-` and no space after a `Bearer`. With IGNORECASE the expression also
    # matches some letters and spaces beyond ASCII. So the function always searches text that is not printable ASCII.
    looked_at = "k-" in text or "K-" in text or " " in text or not (text.isascii() and text.isprintable())
    return (looked_at and _SECRET_TEXT.search(text) is not None) or KEYS.search(text) is not None


def _redacted(key: str, value: object) -> object:
    if key != "event" and _SECRET_KEYS.search(key) and value is not None:
        return "[redacted]"
    if isinstance(value, Mapping):
        return {_without(str(name)): _redacted(str(name), part) for name, part in value.items()}
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return _without(value)
    if isinstance(value, (list, tuple)):
        # A header is a pair of name and value. The name decides whether the value is redacted.
        if len(value) == 2 and isinstance(value[0], str) and _SECRET_KEYS.search(value[0]):
            return [_without(value[0]), "[redacted]"]
        return [_redacted(key, part) for part in value]
    if isinstance(value, (int, float, type(None))):
        return value
    # The value has no JSON form, for example an exception, a set or another object.
    return _without(str(value))


def _without(text: str) -> str:
    return KEYS.sub("[redacted]", _SECRET_TEXT.sub(r"\1[redacted]", text))


def render(event: Mapping[str, object]) -> bytes:
    try:
        return _encode(event)
    except (TypeError, ValueError, OverflowError):
        # A client's text may contain an unpaired surrogate or a huge number. The line about such a request must be
        # written anyway.
        return json.dumps(event).encode()


# Lines for a terminal.

_DIM, _BOLD, _RED, _GREEN, _YELLOW, _END = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_OF_LEVEL: Final = {"debug": _DIM, "info": _BOLD, "warning": _YELLOW, "warn": _YELLOW}
_INDENT: Final = " " * 10
_NAMED: Final = frozenset({"timestamp", "level", "message", "event", "process", "advice", "exception"})
_GOOD: Final = frozenset({"completed", "ok", "incomplete"})


def colors_wanted() -> bool:
    """Return whether standard error is a terminal and the variable `NO_COLOR` is not set (no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def console_line(line: Mapping[str, object], *, colors: bool) -> str:
    """Format a line for a terminal. Below the event's line, separate lines show the cause of a failed response, the
    ignored parts of its request, the advice, and a traceback."""
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
        parts += [f"{_shown(key)}={_shown(value)}" for key, value in line.items() if _is_shown(key, value, level)]
    below = _why(line) if name in ("response", "request") else []
    if line.get("advice"):
        below.append(f"{_INDENT}→ {_shown(line['advice'], spaced=True)}")
    if line.get("exception"):
        below += [_shown(one, spaced=True) for one in str(line["exception"]).splitlines()]
    return "\n".join(["  ".join(part for part in parts if part), *below])


def _is_shown(key: str, value: object, level: str) -> bool:
    """Return whether the line of an event shows this field. Lines at `info` omit the paths of sockets, which are
    long."""
    return key not in _NAMED and not (level == "info" and str(value).startswith("unix:"))


def _response(line: Mapping[str, object], paint: Callable[[str, str], str]) -> list[str]:
    outcome = str(line.get("outcome", ""))
    parts = [_shown(line.get("model", "")), paint(_shown(outcome), _GREEN if outcome in _GOOD else _RED)]
    if "output_tokens" in line or "input_tokens" in line:
        parts.append(f"{_shown(line.get('input_tokens', 0))}+{_shown(line.get('output_tokens', 0))} tokens")
    return [*parts, _seconds(line), _id(line.get("response_id", line.get("request_id", "")))]


def _request(line: Mapping[str, object], paint: Callable[[str, str], str]) -> list[str]:
    status = line.get("status", 0)
    good = isinstance(status, int) and status < 400
    parts = [
        paint(_shown(status), _GREEN if good else _RED),
        f"{_shown(line.get('method', ''))} {_shown(line.get('path', ''))}",
    ]
    return [*parts, _seconds(line), _id(line.get("request_id", ""))]


def _why(line: Mapping[str, object]) -> list[str]:
    """Return a line with the cause of a failure, and a line with the parts of the request that Antiphon ignored. Each
    line is present only if the event has the field."""
    lines = [f"{_INDENT}{_shown(line['cause'], spaced=True)}"] if line.get("cause") else []
    if line.get("ignored"):
        lines.append(f"{_INDENT}ignored={_ignored(line['ignored'])}")
    return lines


def _ignored(value: object) -> str:
    return _shown(",".join(map(str, value)) if isinstance(value, list | tuple) else value)


def _id(value: object) -> str:
    return _shown(shortened(str(value)))


def _seconds(line: Mapping[str, object]) -> str:
    seconds = line.get("seconds")
    return f"{seconds:.2f} s" if isinstance(seconds, int | float) else ""


def _time(stamp: object) -> str:
    """Return the local time of day, or eight spaces for an invalid timestamp."""
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return " " * 8


def _shown(value: object, *, spaced: bool = False) -> str:
    """Return the value as text. The function quotes and escapes a value with control characters. It also quotes a value
    with spaces, unless `spaced` is True."""
    text = str(value)
    return text if text.isprintable() and (spaced or " " not in text) else repr(text)


def _painted(text: str, color: str) -> str:
    return f"{color}{text}{_END}"


def _plain(text: str, color: str) -> str:
    return text


_MAX_BYTES: Final = 1 << 20
_AT_ONCE: Final = 64 << 10
_EXIT_SECONDS: Final = 1.0


class LogOutput:
    """Writes lines to one file descriptor, from any thread. `tell` returns the line that reports a number of dropped
    lines."""

    def __init__(self, descriptor: int, tell: Callable[[int], bytes], *, max_bytes: int = _MAX_BYTES) -> None:
        # `dup` gives this object its own descriptor. Other code may close the original descriptor, and the system may
        # then reuse its number.
        self._descriptor = os.dup(descriptor)
        self._direct = _open_without_waiting(descriptor)
        self._tell = tell
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        # The number of lines that the file rejected, and whether the file ends in the middle of a line.
        self._failed = 0
        self._torn = False
        self.lost = 0
        """The total number of dropped lines."""
        self._writing = False
        self._closed = False
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        atexit.register(self.flush, _EXIT_SECONDS)

    def write(self, line: bytes, lines: int = 1) -> None:
        """Write a line, to which this method adds the line end. `line` may also consist of several lines with line ends
        between them; `lines` is their number."""
        data = line + b"\n"
        with self._changed:
            if self._direct is not None and not self._lines and not self._writing and not self._dropped:
                try:
                    data = data[os.write(self._direct, data) :]
                except BlockingIOError:
                    pass
                except OSError:
                    # The reader has closed the pipe. A closed pipe must not fail a request.
                    return
                if not data:
                    return
            elif self._size + len(data) > self._max_bytes:
                self._dropped += lines
                self.lost += lines
                return
            self._lines.append(data)
            self._size += len(data)
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="antiphon-log", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all lines are written. Returns False after `seconds`."""
        last = time.monotonic() + seconds
        with self._changed:
            while self._lines or self._writing or self._dropped:
                left = last - time.monotonic()
                if left <= 0 or self._writer is None:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Stop the writer thread after it has written the queued lines."""
        self.flush(_EXIT_SECONDS)
        atexit.unregister(self.flush)
        with self._changed:
            self._closed = True
            if self._writer is None:
                self._close_files()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._dropped:
                    if self._closed:
                        self._close_files()
                        return
                    self._changed.wait()
                head = (b"\n" if self._torn else b"") + (self._tell(self._failed) + b"\n" if self._failed else b"")
                taken = bytearray()
                while self._lines and len(taken) < _AT_ONCE:
                    taken += self._lines.popleft()
                if self._dropped:
                    # The dropped lines were newer than all queued lines, so the report follows them.
                    told = self._tell(self._dropped) + b"\n"
                    self._lines.append(told)
                    self._size += len(told)
                    self._dropped = 0
                self._writing = True
            written = self._write(head + taken)
            with self._changed:
                self._size -= len(taken)
                if written:
                    self._torn = not (head + taken)[:written].endswith(b"\n")
                failed = taken[max(0, written - len(head)) :].count(b"\n")
                self.lost += failed
                self._failed = failed + (self._failed if written < len(head) else 0)
                self._writing = False
                self._changed.notify_all()

    def _close_files(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _write(self, data: bytes) -> int:
        """Write the data and return the number of written bytes. The number is smaller than the size of the data if the
        disk is full, or if the pipe's other end is closed."""
        done = 0
        with contextlib.suppress(OSError), memoryview(data) as view:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
        return done


def _open_without_waiting(descriptor: int) -> int | None:
    """Open the same pipe or terminal a second time, in non-blocking mode. Other descriptors of this pipe or terminal
    keep their mode. Returns None for other kinds of files."""
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
