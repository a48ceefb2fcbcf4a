"""An incremental parser for server-sent events.

Lives here: the event stream grammar of the HTML standard, on bytes. The parser handles CR, LF, CRLF, comments, several
`data` lines, a byte order mark, and a stream that ends without its last blank line. The parser also accepts two kinds
of lines outside the grammar:

- A line `error: …` counts as an event of type `error`, because one family of servers (seen: gpustack) writes that line
  instead of an event.
- A line that is a JSON object counts as an event, because some gateways label a whole JSON answer as an event stream
  (github.com/decolua/9router/issues/3492).

Not here: the meaning of the data.

Invariants: the same bytes give the same events in any split. The parser holds at most `limit` bytes.
"""

from __future__ import annotations

from typing import Final

from antiphon.translation.values import ServerSentEvent

_COLON: Final = ord(":")
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """The upstream sent a line or event larger than the limit."""


class SseDecoder:
    """The parser's state. Callers pass bytes to `feed` in any split, and get the completed events."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._type = b""
        self._data: list[bytes] = []
        self._size = 0
        self._started = False
        self._after_cr = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Parse more bytes. Returns the events that these bytes complete. Raises `EventTooLarge`."""
        if (
            data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and len(data) <= self._limit
            and self._started
            and not (self._rest or self._data or self._type or self._after_cr)
            and b"\r" not in data
        ):
            if data.find(b"\n") == len(data) - 2:
                # The usual case: the bytes are one whole event with one line.
                return [ServerSentEvent(b"", data[6:-2])]
            found = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(found):
                # The second usual case: the bytes are several whole events with one line each.
                return [ServerSentEvent(b"", one) for one in found]
        if self._after_cr and data:
            # The CR at the end of the last bytes already counted as a line end, so an LF behind it is skipped.
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if self._rest:
            data = self._rest + data
        if not self._started and data:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return []
            self._started = True
            data = data.removeprefix(_BOM)
        if b"\r" in data:
            if data[-1:] == b"\r":
                self._after_cr = True
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + self._size > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")
        events: list[ServerSentEvent] = []
        for line in lines:
            if line:
                if line[0] != _COLON:
                    self._line(line, events)
            elif self._data or self._type:
                self._line(line, events)
        return events

    def take_line(self) -> bytes | None:
        """Take back the incomplete first line of an event. None when the parser holds more than that line, or when the
        stream has not begun."""
        if not self._started or self._data or self._type or self._after_cr:
            return None
        rest, self._rest = self._rest, b""
        return rest

    def close(self) -> list[ServerSentEvent]:
        """End the stream. An incomplete event counts as complete if it has data."""
        events: list[ServerSentEvent] = []
        if self._rest:
            self._line(self._rest, events)
            self._rest = b""
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if not line:
            if self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(ServerSentEvent(self._type, data))
                self._data = []
            self._type = b""
            self._size = 0
            return
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._size += len(value)
            if self._size > self._limit:
                raise EventTooLarge(f"an event is larger than {self._limit} bytes")
            self._data.append(value)
            return
        name, _, value = line.lstrip(b" ").partition(b":")
        if name == b"event":
            self._type = value.strip()
        elif name == b"data":
            # A space before the field name is outside the grammar, but some recordings have it.
            self._line(b"data:" + value, events)
        elif name == b"error":
            events.append(ServerSentEvent(b"error", value.strip()))
        elif line[:1] == b"{":
            events.append(ServerSentEvent(b"", line.removesuffix(b"data: [DONE]")))
