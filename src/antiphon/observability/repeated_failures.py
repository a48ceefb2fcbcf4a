"""Logs repeated failures in few lines: outages of a retried operation, and refusals for lack of capacity.

`Outage` writes one line when an outage begins, and one when it ends. The callers of `Outage` perform and retry the
operation.

`Refusals` counts requests that are refused for lack of capacity. `engine/exchange/budget.py` refuses the requests, and
`outcome.py` writes the log lines of single refused requests at level debug. Each limit is a setting. `Refusals` logs
the first refusal by a setting immediately. At the end of each second, one more line has the number of refusals since
the previous line. Each of these settings has separate lines, so the process's limit and the owners' limits do not share
a line. The line of an owner limit names the owner with the most refusals, so that the operator sees which owner sends
too many requests.

Invariants: between its first and its last line, an outage writes only one line for each new kind of failure. Antiphon's
log has at most one line of refusals per setting and second. The numbers in all lines add up to the number of all
refusals.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from antiphon.errors import AtCapacity

# After this many seconds without an attempt, the last failure does not predict the next attempt.
_FORGOTTEN = 600.0
_log = structlog.get_logger(__name__)
_OWNER_LENGTH = 12


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
        no caller tried the operation for ten minutes."""
        if not self._failures or self._clock() - self._last > _FORGOTTEN:
            return 0.0
        return self._last - self._since

    def failed(self, *, kind: str = "", **said: object) -> None:
        """Record a failed attempt. `kind` comes from a closed set. The object logs each kind of failure once per
        outage."""
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


class Refusals:
    """Collects the refusals of one process. For each refusal, the object calls `count` with the name of the setting
    whose limit was reached."""

    def __init__(self, count: Callable[[str], None], *, seconds: float = 1.0) -> None:
        self._count = count
        self._seconds = seconds
        self._numbers: dict[str, Counter[str]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last: dict[str, AtCapacity] = {}

    def note(self, full: AtCapacity) -> None:
        """Record one refusal. The object logs the refusal immediately, unless it wrote a line about the same setting
        within the last second."""
        setting = full.setting
        self._count(setting)
        self._last[setting] = full
        self._numbers.setdefault(setting, Counter())[full.owner] += 1
        if setting not in self._timers:
            self._tell(setting)

    def close(self) -> None:
        """Stop the timers and log the remaining refusals."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for setting in tuple(self._numbers):
            self._write(setting)

    def _tell(self, setting: str) -> None:
        """Log the number of refusals since the previous line, and set the timer for the next line."""
        self._timers.pop(setting, None)
        if setting in self._numbers:
            self._write(setting)
            loop = asyncio.get_running_loop()
            self._timers[setting] = loop.call_later(self._seconds, self._tell, setting)

    def _write(self, setting: str) -> None:
        numbers, last = self._numbers.pop(setting), self._last.pop(setting)
        told: dict[str, object] = {"setting": setting, "refused": numbers.total()}
        if last.owner:
            told |= {"owner": numbers.most_common(1)[0][0][:_OWNER_LENGTH], "owners": len(numbers)}
        # An owner over its own limit is normal for the operator, so the line has level info. A process over its limit
        # is not normal, so the line is a warning.
        write = _log.info if last.owner else _log.warning
        fault = "client" if last.owner else "ours"
        write("requests_refused", **told, fault=fault, cause=last.message, status=last.status)
