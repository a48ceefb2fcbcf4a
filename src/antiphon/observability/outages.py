"""Logs an outage of something that is retried: one line when it begins, one when it ends.

Lives here: which failures are logged. Not here: the operation, and when it is retried.

Invariant: between its two lines an outage writes only a line for each new kind of failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

# After so long without an attempt, the last failure tells nothing about the next one.
_FORGOTTEN = 600.0


class Outage:
    """The outages of one retried operation. `begins` and `ends` are the names of the log events."""

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        begins: str,
        ends: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._begins = begins
        self._ends = ends
        self._clock = clock
        self._kinds: set[str] = set()
        self._failures = 0
        self._since = self._last = 0.0

    @property
    def seconds(self) -> float:
        """The duration of the outage up to the last attempt; 0 if it works, or was not tried for long."""
        if not self._failures or self._clock() - self._last > _FORGOTTEN:
            return 0.0
        return self._last - self._since

    def failed(self, *, kind: str = "", **said: object) -> None:
        """An attempt failed. `kind`: from a closed set; each kind is logged once."""
        now = self._clock()
        if not self._failures or now - self._last > _FORGOTTEN:
            self._since, self._failures = now, 0
            self._kinds.clear()
        self._last = now
        self._failures += 1
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._log.warning(self._begins, **said)

    def recovered(self, **said: object) -> None:
        """An attempt succeeded. The line has the duration in seconds, and the number of failed attempts
        (`failures`)."""
        if self._failures:
            seconds = round(self._clock() - self._since, 3)
            self._log.info(self._ends, seconds=seconds, failures=self._failures, **said)
            self._failures = 0
            self._kinds.clear()
