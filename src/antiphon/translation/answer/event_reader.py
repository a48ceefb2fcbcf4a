"""Reads an upstream's event stream as single events and as runs of similar chunks.

Lives here: the choice between single events and runs, and the decision when to learn the common pattern of chunks. Not
here: the grammar of events (`sse.py`), the common pattern (`alike.py`), cutting chunks (`translation/splice.py`), the
effect of events and chunks (`stream.py`).

Invariants:

- the learned pattern holds until a different chunk comes;
- runs and events come in the order of the bytes, and do not depend on how the bytes are split;
- a stream whose chunks are never similar costs only a few attempts to learn.
"""

from __future__ import annotations

from typing import Final

from antiphon.translation.answer.alike import Alike, learn
from antiphon.translation.answer.sse import SseDecoder
from antiphon.translation.events.open_items import TextOf
from antiphon.translation.values import ServerSentEvent
from antiphon.types.chat import Chunk

_TRIES = 16
"""After this many failed attempts in a row, the reader stops trying to learn a pattern."""
_ALONE: Final = 4
"""The number of events that the reader takes one by one from each read, so that it can learn a pattern from one of
them."""


class EventReader:
    """Splits a stream's bytes into events and runs. Callers pass bytes to `feed` in any split, and call `next` until it
    returns None.

    When the bytes begin with chunks like the previous chunk, `next` returns their common pattern. After `next` returns
    a pattern, the caller takes the matching chunks from the beginning of `data`, and reports their size with `took`.
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
        # Whether the caller took no chunk of the learned pattern, so that the next event is decoded fully.
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
        """The next event, or the pattern of the next run. None if the bytes hold no complete event. Raises
        `EventTooLarge`."""
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
        """Report how many bytes of `data` the caller took as similar chunks. If `size` is 0, the next event is decoded
        fully."""
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
        """Whether the data begins at the start of an event. Bytes of that event that were read before are put back
        first."""
        line = self._sse.take_line()
        if line is None:
            return False
        if line:
            self.data = line + self.data
        return len(self.data) <= self._limit

    def _apart(self) -> tuple[bytes, bytes]:
        """Split the unread bytes into those to parse next, and the rest."""
        data = self.data
        if self._alone and self._tries:
            self._alone -= 1
            for end in (b"\n\n", b"\r\n\r\n"):
                at = data.find(end)
                if at >= 0:
                    return data[: at + len(end)], data[at + len(end) :]
        return data, b""
