"""An upstream's event stream, cut into events and into texts of chunks that are alike.

Lives here: in which of the two ways bytes are read, and when it is worth to learn what chunks have in common. Not here:
the grammar of events (`sse.py`), what chunks have in common (`alike.py`), what any of it means (`chat_stream.py`).

Invariants: what was learned holds until anything else comes; the texts and events are those of the bytes, in order,
whatever the split; streams whose chunks are never alike cost no more than a few tries.
"""

from __future__ import annotations

from msgspec import Struct

from antiphon.translation.alike import Alike, learn
from antiphon.translation.open_items import TextOf
from antiphon.translation.sse import SseDecoder
from antiphon.translation.values import ServerSentEvent
from antiphon.types.chat import Chunk

_TRIES = 16
"""After so many chunks in a row from which nothing was learned that helped, no more is tried."""
_ALONE = 4
"""So many events of one read are read one by one, since those behind them may be like them."""


class Texts(Struct, gc=False):
    """The texts of chunks that are alike but for these; none is empty."""

    text_of: TextOf
    texts: list[bytes]


class EventReader:
    """`feed` takes bytes in any split; `next` gives what they hold, until it gives None."""

    __slots__ = ("_alike", "_alone", "_cut", "_data", "_event", "_events", "_limit", "_piece", "_sse", "_tries")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sse = SseDecoder(limit)
        self._data = b""
        self._events: list[ServerSentEvent] = []
        self._event: ServerSentEvent | None = None
        self._alike: Alike | None = None
        # What the last texts were cut from, and the last events read from.
        self._cut = self._piece = b""
        self._tries = _TRIES
        self._alone = 0

    def feed(self, data: bytes) -> None:
        """More bytes. What was fed before is read to its end."""
        self._data = data
        self._alone = _ALONE

    def next(self) -> ServerSentEvent | Texts | None:
        """What comes next, None when that is not whole. Raises `EventTooLarge`."""
        while True:
            if self._events:
                self._alike = None
                self._event = event = self._events.pop()
                return event
            if not self._data:
                return None
            if self._alike is not None and (found := self._cut_alike(self._alike)) is not None:
                return found
            self._piece, self._data = self._apart()
            self._events = self._sse.feed(self._piece)
            self._events.reverse()

    def learn(self, chunk: Chunk, text_of: TextOf) -> None:
        """The last event was read as this chunk, and its text is of this: those behind it may be like it."""
        if self._event is None or self._events or not self._tries or self._event.type:
            return
        self._tries -= 1
        self._alike = learn(self._piece, self._event.data, chunk, text_of)

    def read_in_full(self) -> None:
        """The last texts are no use: read what they were cut from as events."""
        self._alike = None
        self._data = self._cut + self._data
        self._alone = 0

    def close(self) -> list[ServerSentEvent]:
        """The stream has ended. Raises `EventTooLarge`."""
        return self._sse.close()

    def _cut_alike(self, alike: Alike) -> Texts | None:
        line = self._sse.take_line()
        if line is None:
            return None
        self._data = data = line + self._data if line else self._data
        if len(data) > self._limit:
            return None
        texts, size = alike.cut(data)
        if not size:
            return None
        self._tries = _TRIES
        self._cut, self._data = data[:size], data[size:]
        return Texts(alike.text_of, texts)

    def _apart(self) -> tuple[bytes, bytes]:
        """What is read next, and the rest."""
        data = self._data
        if self._alone and self._tries:
            self._alone -= 1
            for end in (b"\n\n", b"\r\n\r\n"):
                at = data.find(end)
                if at >= 0:
                    return data[: at + len(end)], data[at + len(end) :]
        return data, b""
