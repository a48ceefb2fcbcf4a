"""When ended responses are told of: some at a time, where a process serves.

Lives here: the queue of ended responses, and its times. Not here: their lines and metrics (`observation.py`), and the
wait for Envoy's report on a stream that ended early (`early_ends.py`).

Telling of one response takes half the time among others of its kind that it takes between two pieces of serving, where
none of its code and data is at hand in the processor; and one write of many lines wakes their reader once. So a
serving process tells of those that went well every `_SECONDS`. Who did not ask for that (`by_time`) tells at once.

Invariants: what ended is told once and in that order, at the latest `_SECONDS` later, when metrics are scraped, or at
the process's end; at most `_MOST` wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from antiphon.observability.early_ends import EarlyEnds
from antiphon.observability.logs import lines_together

_SECONDS = 0.05
_MOST = 100


class Endings:
    """One per process, for the event loop's thread alone."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.Handle | None = None
        self.early = EarlyEnds()

    def by_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on tell some at a time."""
        self._loop = loop

    def add(self, tell: Callable[[], None], *, now: bool) -> None:
        """Tell this, `now` or among others."""
        self._waiting.append(tell)
        if now or self._loop is None or len(self._waiting) >= _MOST:
            self.tell()
        elif self._timer is None:
            self._timer = self._loop.call_later(_SECONDS, self.tell)

    def tell(self) -> None:
        """Tell all that wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            with lines_together():
                while self._waiting:
                    self._waiting.popleft()()
        finally:
            if self._waiting and self._loop is not None:
                # One of them failed, which must not be the others' end.
                self._timer = self._loop.call_soon(self.tell)

    def close(self) -> None:
        """Tell all, those too that Envoy has yet to speak of: nothing more comes."""
        self.early.close()
        self.tell()

    async def told(self) -> None:
        """The same, for who can wait."""
        self.tell()
