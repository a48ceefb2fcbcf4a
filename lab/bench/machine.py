"""Measures how busy the machine is with other programs.

Lives here: the share of the cores' time that other programs took, over a while. Not here: reading the clocks
(`cpu.py`).

Invariant: the benchmark and all processes below it do not count, running or ended; time taken by a virtual machine's
host does.
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
    all below it."""

    def __init__(self, read: Callable[[], tuple[float, float, float]] | None = None, cores: int = 0) -> None:
        self._read = read or _now
        self._cores = cores or os.cpu_count() or 1
        self._began, self._busy, self._own = self._read()

    def others(self) -> float:
        """Their share of all cores' time until now."""
        now, busy, own = self._read()
        spent = (busy - self._busy) - (own - self._own)
        # Two clocks are read, one of them in ticks.
        return min(max(spent / ((now - self._began) * self._cores), 0.0), 1.0)


def _now() -> tuple[float, float, float]:
    return time.monotonic(), cpu.busy_seconds(), cpu.tree_seconds([os.getpid()])
