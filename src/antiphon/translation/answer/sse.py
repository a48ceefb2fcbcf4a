"""Reads an event stream (server-sent events) as single events and as runs of similar chunks.

This module has a parser for server-sent events, which follows the grammar of the HTML standard and works on bytes. The
parser handles CR, LF, CRLF, comments, several `data` lines, a byte order mark, and a stream that ends without a blank
line. The parser also accepts two kinds of lines outside the grammar:

- A line `error: …` counts as an event of type `error`, because one family of servers (seen: gpustack) writes that line
  instead of an event.
- A line that is a JSON object counts as an event, because some gateways label a whole JSON answer as an event stream
  (github.com/decolua/9router/issues/3492).

A run is a series of chunks that differ only in their text. `EventReader` decides whether the next bytes are a single
event or a run, and when to learn the run's common pattern. `alike.py` finds the common pattern, `translation/splice.py`
cuts the texts out of chunks, and `stream.py` interprets events and chunks.

Invariants:

- the same bytes give the same events and texts in the same order, however the upstream splits the bytes;
- the parser holds at most `limit` bytes;
- the learned pattern stays valid until a different chunk comes;
- for a stream whose chunks are never similar, the reader makes only a few attempts to learn.
"""

from __future__ import annotations

from typing import Final

from antiphon.translation.answer.alike import Alike, learn
from antiphon.translation.events.open_items import TextOf
from antiphon.translation.values import ServerSentEvent
from antiphon.types.chat import Chunk

_COLON: Final = ord(":")
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """The upstream sent a line or event larger than the limit."""


class SseDecoder:
    """A parser for server-sent events. Callers pass chunks of any size to `feed`, and get the completed events."""

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
            # The CR at the end of the last bytes already counted as a line end, so the parser skips an LF behind it.
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
        """Remove the incomplete first line of an event from the parser, and return this line. Returns None if the
        parser holds bytes of an earlier line of the event, or if the stream has not begun."""
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


_TRIES = 16
"""After this many failed attempts in a row, the reader stops trying to learn a pattern."""
_ALONE: Final = 4
"""The reader parses this number of events of each `feed` one by one. From one of these events, the reader can learn a
pattern."""


class EventReader:
    """Splits a stream's bytes into events and runs. Callers pass chunks of any size to `feed`, and call `next` until
    `next` returns None.

    If the bytes begin with a chunk that differs from the previous chunk only in its text, `next` returns the common
    pattern of both. After `next` returns a pattern, the caller takes the matching chunks from the beginning of `data`,
    and reports their size with `took`.
    """

    __slots__ = ("_alike", "_alone", "_event", "_events", "_in_full", "_limit", "_piece", "_sse", "_tries", "data")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sse = SseDecoder(limit)
        self.data = b""
        """The unread bytes."""
        self._events: list[ServerSentEvent] = []
        self._event: ServerSentEvent | None = None
        self._alike: Alike | None = None
        # Whether the caller took no chunk of the learned pattern. If so, the reader decodes the next event fully.
        self._in_full = False
        # The bytes from which the last events were parsed.
        self._piece = b""
        self._tries = _TRIES
        self._alone = 0

    def feed(self, data: bytes) -> None:
        """Pass more bytes. Call `feed` only after `next` has returned None."""
        self.data = data
        self._alone = _ALONE

    def next(self) -> ServerSentEvent | Alike | None:
        """Return the next event, or the pattern of the next run. Returns None if the bytes contain no complete event.
        Raises `EventTooLarge`."""
        while True:
            if self._events:
                self._alike = None
                self._event = event = self._events.pop()
                return event
            if not self.data:
                return None
            if self._alike is not None and not self._in_full and self._is_at_an_event():
                return self._alike
            self._in_full = False
            self._piece, self.data = self._apart()
            self._events = self._sse.feed(self._piece)
            self._events.reverse()

    def took(self, size: int) -> None:
        """Report how many bytes of `data` the caller took as similar chunks. If `size` is 0, the reader decodes the
        next event fully."""
        if size:
            self._tries = _TRIES
            self.data = self.data[size:]
        else:
            self._in_full = True

    def learn(self, chunk: Chunk, text_of: TextOf) -> None:
        """Try to learn a pattern from the last event. The caller decoded the event as `chunk`, and `text_of` is the
        kind of the chunk's text."""
        if self._event is None or self._events or not self._tries or self._event.type:
            return
        self._tries -= 1
        self._alike = learn(self._piece, self._event.data, chunk, text_of)

    def close(self) -> list[ServerSentEvent]:
        """End the stream. Returns the last event if the stream ended without a blank line. Raises `EventTooLarge`."""
        return self._sse.close()

    def _is_at_an_event(self) -> bool:
        """Whether the data begins at the start of an event. If the parser has already taken the first bytes of that
        event, the method first puts them back."""
        line = self._sse.take_line()
        if line is None:
            return False
        if line:
            self.data = line + self.data
        return len(self.data) <= self._limit

    def _apart(self) -> tuple[bytes, bytes]:
        """Split the unread bytes into the bytes to parse next, and the remaining bytes. The reader parses the first
        `_ALONE` events of each `feed` one by one, so that the reader can learn a pattern."""
        data = self.data
        if self._alone and self._tries:
            self._alone -= 1
            for end in (b"\n\n", b"\r\n\r\n"):
                at = data.find(end)
                if at >= 0:
                    return data[: at + len(end)], data[at + len(end) :]
        return data, b""
