"""A measured round of callers that each do one thing after another on a store.

Lives here: the round, its figures, and the median of several. Not here: what the callers do (`state.py`,
`state_stored.py`).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields

from lab.bench.state_places import Place

Caller = Callable[[int], Callable[[], Awaitable[object]]]
"""What the caller with this number does again and again."""


@dataclass(frozen=True)
class Round:
    """Operations a second, the CPU time of one (µs; `server`: of the database's processes), how long its caller waits
    (ms)."""

    rate: float
    cpu: float
    server: float
    p50: float
    p99: float


async def measured(place: Place, caller: Caller, callers: int, seconds: float) -> Round:
    """So many callers, for so long."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds

    async def repeat(work: Callable[[], Awaitable[object]]) -> None:
        while (began := time.perf_counter()) < ends:
            await work()
            taken.append(time.perf_counter() - began)

    others, cpu, began = place.database_cpu(), time.process_time(), time.perf_counter()
    await asyncio.gather(*[repeat(caller(number)) for number in range(callers)])
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    server = sum(spent - others.get(pid, 0.0) for pid, spent in place.database_cpu().items())
    taken.sort()
    return Round(
        len(taken) / took,
        cpu / len(taken) * 1e6,
        server / len(taken) * 1e6,
        taken[len(taken) // 2] * 1e3,
        taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1e3,
    )


def median(rounds: Sequence[Round]) -> Round:
    """The median of each figure."""
    return Round(*[statistics.median(getattr(each, field.name) for each in rounds) for field in fields(Round)])
