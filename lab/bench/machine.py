"""Measures how busy other programs keep the machine.

Lives here: the share of the cores' time that other programs used, over a period. Not here: reading the clocks
(`cpu.py`).

Invariant: the share does not include the benchmark and all its descendants, whether they run or have ended. The share
does include time that a virtual machine's host used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from lab.bench import cpu

QUIET = 0.05
"""The share of the cores' time that other programs may take with `--idle`."""


class Watch:
    """Measures from its creation on. `read` returns the time, the CPU time of all cores, and that of this process and
    all its descendants."""

    def __init__(self, read: Callable[[], tuple[float, float, float]] | None = None, cores: int = 0) -> None:
        self._read = read or _now
        self._cores = cores or os.cpu_count() or 1
        self._began, self._busy, self._own = self._read()

    def others(self) -> float:
        """The share of all cores' time that other programs used since the creation."""
        now, busy, own = self._read()
        spent = (busy - self._busy) - (own - self._own)
        # The function reads two clocks, and one of them counts in ticks. So a small difference may be negative.
        return min(max(spent / ((now - self._began) * self._cores), 0.0), 1.0)


def _now() -> tuple[float, float, float]:
    return time.monotonic(), cpu.busy_seconds(), cpu.tree_seconds([os.getpid()])
