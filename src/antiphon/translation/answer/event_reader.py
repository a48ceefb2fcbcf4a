"""Reads an upstream's event stream as single events and as runs of chunks that are alike.

Lives here: the choice between the two ways of reading, and when it pays to learn what chunks have in common. Not here:
the grammar of events (`sse.py`), what chunks have in common (`alike.py`), cutting them (`translation/splice.py`), what
any of it means (`stream.py`).

Invariants:

- the learned pattern holds until a different chunk comes;
- runs and events come in the order of the bytes, however the bytes are split;
- a stream whose chunks are never alike costs no more than a few tries.
"""

from __future__ import annotations

from typing import Final

from antiphon.translation.answer.alike import Alike, learn
from antiphon.translation.answer.sse import SseDecoder
from antiphon.translation.events.open_items import TextOf
from antiphon.translation.values import ServerSentEvent
from antiphon.types.chat import Chunk

_TRIES = 16
"""After this many useless attempts in a row the reader stops learning."""
_ALONE: Final = 4
"""So many events of one read are read one by one, since those behind them may be like them."""


class EventReader:
    """`feed` takes bytes in any split; `next` returns their content, until it returns None.

    The reader skips chunks that are like the previous one: `next` returns their common pattern. The caller takes all
    such chunks from the beginning of `data`, and reports how many bytes these were (`took`).
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
        # Nothing at the beginning of the data was like what was learned.
        self._in_full = False
        # What the last events were read from.
        self._piece = b""
        self._tries = _TRIES
        self._alone = 0

    def feed(self, data: bytes) -> None:
        """Take more bytes. Call it only after `next` has returned None."""
        self.data = data
        self._alone = _ALONE

    def next(self) -> ServerSentEvent | Alike | None:
        """The next event, or None if it is not complete. Raises `EventTooLarge`."""
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
        """So many bytes of `data` were taken as chunks that are alike; none: those there are read in full."""
        if size:
            self._tries = _TRIES
            self.data = self.data[size:]
        else:
            self._in_full = True

    def learn(self, chunk: Chunk, text_of: TextOf) -> None:
        """The last event was read as this chunk, and its text is of this: those behind it may be like it."""
        if self._event is None or self._events or not self._tries or self._event.type:
            return
        self._tries -= 1
        self._alike = learn(self._piece, self._event.data, chunk, text_of)

    def close(self) -> list[ServerSentEvent]:
        """The stream has ended. Raises `EventTooLarge`."""
        return self._sse.close()

    def _is_at_an_event(self) -> bool:
        """Whether the data begins where an event does, once its beginning was taken back that was read before."""
        line = self._sse.take_line()
        if line is None:
            return False
        if line:
            self.data = line + self.data
        return len(self.data) <= self._limit

    def _apart(self) -> tuple[bytes, bytes]:
        """Split the unread bytes: the part to read next, and the rest."""
        data = self.data
        if self._alone and self._tries:
            self._alone -= 1
            for end in (b"\n\n", b"\r\n\r\n"):
                at = data.find(end)
                if at >= 0:
                    return data[: at + len(end)], data[at + len(end) :]
        return data, b""
