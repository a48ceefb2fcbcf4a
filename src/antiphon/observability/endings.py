"""Writes the log lines and metrics of ended responses in batches, and waits for Envoy's log line about each stream that
ends early.

A report is the log line and the metrics of one ended response, and `Endings` queues the reports. Envoy's report is
Envoy's log line about one stream that ended early. `EarlyEnds` holds the requests that wait for Envoy's report, and
each of Envoy's reports that arrives before its request has ended. `observation.py` makes the log lines and metrics of a
response. `envoy/failures.py` defines Envoy's log line, and `supervisor/worker_orders.py` sends that line to the worker
process.

Batches halve the time for each response's log line and metrics, because code and data are then in the CPU cache. In
addition, one write of many lines wakes the process that reads the log only once. So a serving process reports
successful responses every `_SECONDS`. Before the first call of `by_time`, `Endings` reports each response immediately.

A sidecar sees the end of Envoy's stream but not its cause. Envoy's log line has the cause, and arrives a moment before
or after the end of the stream.

Invariants: `Endings` reports each ended response once, in order, at most `_SECONDS` late. The process writes the
reports of all queued responses before a scrape and before it exits. At most `_MOST` reports wait. Each call of `ask`
gets one answer, at the latest after `_REPORT_SECONDS` or at the process's end. The process stores at most
`_MOST_REPORTS` of Envoy's reports that arrive before their request has ended. If Envoy sends this process no reports,
no request waits for one.
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
    """Envoy's report (a log line) on the early end of one stream. `client_left` is False if the upstream broke off its
    answer. `status` is the client's HTTP status, or 0 if the client got none."""

    client_left: bool
    details: str
    status: int


_Told = Callable[[EarlyEnd | None], None]


class EarlyEnds:
    """Matches each request whose stream ended early to Envoy's report on the end of this stream. A process has one such
    object, and only the event loop's thread may use it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: dict[str, list[tuple[_Told, asyncio.TimerHandle]]] = {}
        self._heard: dict[str, tuple[EarlyEnd, float]] = {}

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to wait for Envoy's reports. Call this method only in a process to which the parent process forwards
        these reports."""
        self._loop = loop

    def ask(self, request_id: str, told: _Told) -> None:
        """Call `told` with Envoy's report on this request, or with None if no report arrives in time."""
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
        """Process a report from Envoy: answer a waiting request, or store the report."""
        if self._loop is None or self._answer(request_id, end):
            return
        # Most reports concern requests of other processes. A report on this process's request may arrive before the
        # request has ended.
        self._heard.pop(request_id, None)
        self._heard[request_id] = (end, self._loop.time())
        if len(self._heard) > _MOST_REPORTS:
            del self._heard[next(iter(self._heard))]

    def close(self) -> None:
        """Call all waiting callbacks with None, because no more reports arrive."""
        self._loop = None
        for request_id in list(self._asked):
            while self._answer(request_id, None):
                pass

    def _answer(self, request_id: str, end: EarlyEnd | None) -> bool:
        """Answer the first request that waits under this id. Several requests may have the same id. Returns False if no
        request waits."""
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
    """Queues the reports (log line and metrics) of ended responses, at most `most` of them. A process has one such
    object, and only the event loop's thread may use it."""

    def __init__(self, *, most: int = _MOST) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.Handle | None = None
        self.early = EarlyEnds()

    def by_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Switch to reporting in batches on this event loop."""
        self._loop = loop

    def add(self, tell: Callable[[], None], *, now: bool) -> None:
        """Queue a report. If `now` is True, write all queued reports immediately."""
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
                # One report raised an error, which must not stop the other reports.
                self._timer = self._loop.call_soon(self.tell)

    def close(self) -> None:
        """Write the log lines and metrics of all ended responses, also of those that still wait for Envoy's report."""
        self.early.close()
        self.tell()

    async def tell_before_scrape(self) -> None:
        """Write the log lines and metrics of all queued responses, so that a scrape includes the metrics."""
        self.tell()
