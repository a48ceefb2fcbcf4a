"""Reports ended responses in batches, and waits for Envoy's report when a stream ends early.

Lives here: the queue of ended responses, and its times; requests that wait for Envoy's report, and reports that precede
the end of their request. Not here: lines and metrics of responses (`observation.py`), Envoy's line
(`envoy/failure_lines.py`) and its way to the worker (`supervisor/early_ends.py`).

Reporting a response in a batch takes half the time of reporting it between requests, because code and data are in the
CPU cache. One write of many lines also wakes their reader only once. So a serving process reports successful responses
every `_SECONDS`. Without `by_time`, each is reported at once.

A sidecar sees the end of Envoy's stream but not its cause. Envoy's line has the cause; it arrives a moment before or
after.

Invariants: each ended response is reported once, in order, at the latest `_SECONDS` later, at a scrape or at the
process's end. At most `_MOST` wait. Each `ask` gets one answer, at the latest after `_REPORT_SECONDS` or at the
process's end. At most `_MOST_REPORTS` early reports are stored. Without a source of reports no request waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from antiphon.observability.logs import lines_together

_SECONDS = 0.05
_MOST = 100
_REPORT_SECONDS = 2.0
_MOST_REPORTS = 1000


class EarlyEnd(NamedTuple):
    """Envoy's report on one stream. `status` is the client's HTTP status, 0 if it got none."""

    client_left: bool
    details: str
    status: int


_Told = Callable[[EarlyEnd | None], None]


class EarlyEnds:
    """Matches early ends with Envoy's reports. One per process, only for the event loop's thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[str, list[tuple[_Told, asyncio.TimerHandle]]] = {}
        self._heard: dict[str, tuple[EarlyEnd, float]] = {}

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reports will come: from now on requests wait for them."""
        self._loop = loop

    def ask(self, request_id: str, told: _Told) -> None:
        """Call `told` with Envoy's report on this request, or with None if none comes."""
        loop = self._loop
        if loop is None:
            told(None)
            return
        end, at = self._heard.pop(request_id, (None, 0.0))
        if end is not None and loop.time() - at < _REPORT_SECONDS:
            told(end)
            return
        timer = loop.call_later(_REPORT_SECONDS, self._answer, request_id, None)
        self._asked.setdefault(request_id, []).append((told, timer))

    def hear(self, request_id: str, end: EarlyEnd) -> None:
        """Process a report from Envoy."""
        if self._loop is None or self._answer(request_id, end):
            return
        # Most reports are about other processes' requests. The others may arrive before the request has ended here.
        self._heard.pop(request_id, None)
        self._heard[request_id] = (end, self._loop.time())
        if len(self._heard) > _MOST_REPORTS:
            del self._heard[next(iter(self._heard))]

    def close(self) -> None:
        """No more reports come: answer all waiting requests."""
        self._loop = None
        for request_id in list(self._asked):
            while self._answer(request_id, None):
                pass

    def _answer(self, request_id: str, end: EarlyEnd | None) -> bool:
        """Answer the first request that waits under this id; return whether there was one. (Several requests may have
        the same id.)"""
        asked = self._asked.get(request_id)
        if not asked:
            return False
        told, timer = asked.pop(0)
        timer.cancel()
        if not asked:
            del self._asked[request_id]
        told(end)
        return True


class Endings:
    """Queues the reports of ended responses. One per process, only for the event loop's thread. At most `most` wait."""

    def __init__(self, *, most: int = _MOST) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.Handle | None = None
        self.early = EarlyEnds()

    def by_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on report in batches."""
        self._loop = loop

    def add(self, tell: Callable[[], None], *, now: bool) -> None:
        """Queue a report; with `now` all queued reports are written at once."""
        self._waiting.append(tell)
        if now or self._loop is None or len(self._waiting) >= self._most:
            self.tell()
        elif self._timer is None:
            self._timer = self._loop.call_later(_SECONDS, self.tell)

    def tell(self) -> None:
        """Write all queued reports."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            with lines_together():
                while self._waiting:
                    self._waiting.popleft()()
        finally:
            if self._waiting and self._loop is not None:
                # One report failed, which must not stop the others.
                self._timer = self._loop.call_soon(self.tell)

    def close(self) -> None:
        """Write all reports, also those that wait for Envoy."""
        self.early.close()
        self.tell()

    async def tell_before_scrape(self) -> None:
        """Like `tell`, as a coroutine."""
        self.tell()
