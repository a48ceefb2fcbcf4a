"""When Python's collector looks for cycles in a serving process.

Lives here: how seldom it comes by itself, and that it comes by time. Not here: cycles; what serves leaves none where it
can (`tests/faults/test_what_failures_leave.py`), libraries leave some.

By itself the collector counts objects, and there are few: a request leaves next to nothing behind, so that hours may
pass. But one cycle may hold a request's body and what was read of its answer, megabytes for each failed call.

Invariant: what only a cycle holds is freed `_EVERY` seconds after the last look, or after 2,000 times as long as that
look took: it never takes more of the time, however much there is to look at (150,000 objects take some 40 ms).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

_EVERY = 30.0
_PATIENCE = 2000.0
_COLLECTOR = (10_000, 20, 50)


def keep_what_there_is() -> None:
    """Everything is built: the collector need not look at it again (5 ms each time, for all streams).

    Nor need it look whenever a few hundred objects were made: all streams wait while it looks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)


def collect_by_time(
    later: Callable[[float, Callable[[], None]], object],
    *,
    collect: Callable[[], object] = gc.collect,
    clock: Callable[[], float] = time.thread_time,
) -> None:
    """Look for cycles from now on. `later`: the loop's `call_later`."""

    def look() -> None:
        started = clock()
        collect()
        later(max(_EVERY, (clock() - started) * _PATIENCE), look)

    later(_EVERY, look)
