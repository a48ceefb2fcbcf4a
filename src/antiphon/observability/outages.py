"""Logs the outages of a retried operation: one line when an outage begins, and one when it ends.

This module decides which failures are logged. The callers of this module perform the operation and retry it.

Invariant: between its first and its last line, an outage writes only one line for each new kind of failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

# After this many seconds without an attempt, the last failure tells nothing about the next attempt.
_FORGOTTEN = 600.0


class Outage:
    """Tracks the outages of one retried operation. `begins` and `ends` are the names of the two log events."""

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
        """The seconds from the outage's first failure to its last attempt. The value is 0 if the operation works, or if
        it was not tried for ten minutes."""
        if not self._failures or self._clock() - self._last > _FORGOTTEN:
            return 0.0
        return self._last - self._since

    def failed(self, *, kind: str = "", **said: object) -> None:
        """Record a failed attempt. `kind` comes from a closed set, and each kind is logged once per outage."""
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
        """Record a successful attempt. If the success ends an outage, log the outage's duration in seconds and the
        number of failed attempts (`failures`)."""
        if self._failures:
            seconds = round(self._clock() - self._since, 3)
            self._log.info(self._ends, seconds=seconds, failures=self._failures, **said)
            self._failures = 0
            self._kinds.clear()
