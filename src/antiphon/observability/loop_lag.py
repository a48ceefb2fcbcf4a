"""How late the event loop comes back: what everybody who waits in it waits longer.

Lives here: one timer. Not here: what is shown of it (`metric_names.py`).

Invariant: one timer per process; none after `close`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_SECONDS = 0.25


class LoopLag:
    """Tells `add` by how many seconds the loop was late, four times a second."""

    def __init__(self, add: Callable[[float], None], *, seconds: float = _SECONDS) -> None:
        """Begins at once, in the running event loop."""
        self._add = add
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ask()

    def close(self) -> None:
        """Stop."""
        self._timer.cancel()

    def _ask(self) -> None:
        # Not the loop's own time: some loops read the clock once a turn.
        self._due = time.perf_counter() + self._seconds
        self._timer = self._loop.call_later(self._seconds, self._back)

    def _back(self) -> None:
        self._add(max(0.0, time.perf_counter() - self._due))
        self._ask()
