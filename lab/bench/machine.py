"""How busy the machine is with what is not the benchmark's.

Lives here: the share of the cores' time that others took, over a while. Not here: reading the clocks (`cpu.py`).

Invariant: what the benchmark and all below it worked is no other's, whether it still runs or has ended; time that
a virtual machine's host took is.
"""

from __future__ import annotations

import os
import time

from lab.bench import cpu

QUIET = 0.05
"""Of the cores' time: what others may take with `--idle`."""


class Watch:
    """From when it is made."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), cpu.busy_seconds(), _own()

    def others(self) -> float:
        """Their share of all cores' time until now."""
        spent = (cpu.busy_seconds() - self._busy) - (_own() - self._own)
        # Two clocks are read, one of them in ticks.
        return min(max(spent / ((time.monotonic() - self._began) * (os.cpu_count() or 1)), 0.0), 1.0)


def _own() -> float:
    return cpu.tree_seconds([os.getpid()])
