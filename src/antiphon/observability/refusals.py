"""Counts requests that are refused for lack of capacity, and logs at most one line a second about them.

Lives here: the counter and the line. Not here: the refusals (`engine/exchange/budget.py`), the lines of single
requests, which have level debug here (`outcome.py`).

The first refusal of a kind is logged at once, the further ones within a second as a number at its end. A kind is a
setting, so the process's limit and the owners' limits have separate lines. The line of an owner limit names the owner
with the most refusals, so that the operator sees which one floods.

Invariants: at most one line a second for each setting. The numbers in all lines add up to all refusals.
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
    """The refusals of one process; `count` is called with the setting of each refusal."""

    def __init__(self, count: Callable[[str], None], *, seconds: float = 1.0) -> None:
        self._count = count
        self._seconds = seconds
        self._numbers: dict[str, Counter[str]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last: dict[str, AtCapacity] = {}

    def note(self, full: AtCapacity) -> None:
        """Record one refusal."""
        setting = full.setting
        self._count(setting)
        self._last[setting] = full
        self._numbers.setdefault(setting, Counter())[full.owner] += 1
        if setting not in self._timers:
            self._tell(setting)

    def close(self) -> None:
        """Log the remaining refusals."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for setting in tuple(self._numbers):
            self._write(setting)

    def _tell(self, setting: str) -> None:
        """Write the line, and set the timer for the next one."""
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
        # An owner over its own limit is normal for the operator; a process over its limit is not.
        write: Any = _log.info if last.owner else _log.warning
        fault = "client" if last.owner else "ours"
        write("requests_refused", **told, fault=fault, cause=last.message, status=last.status)
