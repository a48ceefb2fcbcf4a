"""Logs an outage of something that is retried: one line when it begins, one when it ends.

Lives here: which failures are told. Not here: what failed, and when it is tried again.

Invariant: between its two lines an outage leaves none, but for a kind of failure that it has not shown yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

# Nobody asked again: what was noted of the last failure says nothing about the next one.
_FORGOTTEN = 600.0


class Outage:
    """Of one thing that is tried again. `begins` and `ends` are the names of the lines."""

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
        """How long it has been failing, as far as it was tried; 0: it works, or nobody has tried for long."""
        if not self._failures or self._clock() - self._last > _FORGOTTEN:
            return 0.0
        return self._last - self._since

    def failed(self, *, kind: str = "", **said: object) -> None:
        """It failed, once more or for the first time. `kind`: of a closed set, where each is to be told once."""
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
        """It worked. The line says how long it did not, in seconds, and how often it was tried (`failures`)."""
        if self._failures:
            seconds = round(self._clock() - self._since, 3)
            self._log.info(self._ends, seconds=seconds, failures=self._failures, **said)
            self._failures = 0
            self._kinds.clear()
