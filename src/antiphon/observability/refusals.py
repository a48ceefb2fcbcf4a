"""Counts requests that are refused for lack of capacity, and logs at most one line a second about them.

`engine/exchange/budget.py` refuses the requests. `outcome.py` writes the log lines of single refused requests at level
debug.

The first refusal by a setting is logged immediately. Further refusals within a second are logged as a number at the end
of that second. Each setting has separate lines, so the process's limit and the owners' limits do not share a line. The
line of an owner limit names the owner with the most refusals, so that the operator sees which one floods.

Invariants: each setting writes at most one line per second. The numbers in all lines add up to the number of all
refusals.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

from antiphon.errors import AtCapacity

_log = structlog.get_logger(__name__)
_OWNER_LENGTH = 12


class Refusals:
    """Collects the refusals of one process. For each refusal, the object calls `count` with the refusal's setting."""

    def __init__(self, count: Callable[[str], None], *, seconds: float = 1.0) -> None:
        self._count = count
        self._seconds = seconds
        self._numbers: dict[str, Counter[str]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last: dict[str, AtCapacity] = {}

    def note(self, full: AtCapacity) -> None:
        """Record one refusal. The refusal is logged immediately if no line about its setting was written within the
        last second."""
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
        """Log the refusals so far, and set the timer for the next line."""
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
        write: Any = _log.info if last.owner else _log.warning
        fault = "client" if last.owner else "ours"
        write("requests_refused", **told, fault=fault, cause=last.message, status=last.status)
