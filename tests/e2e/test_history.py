"""The short version of `scripts/bench --history`: it runs, and history costs what it must, not more.

The bounds are wide, since other work shares the machine: they would see a query for each turn, or a scan of the table.
"""

from __future__ import annotations

import statistics

import pytest

from lab.bench.history import run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]


async def test_history_costs_little_whatever_is_stored() -> None:
    times = await run(stored=40_000, turns=[1, 40], requests=15)
    assert set(times) == {"bare", *(f"{kind} of {turns}" for kind in ("chain", "conversation") for turns in (1, 40))}
    best = {name: min(spent) for name, spent in times.items()}
    assert all(len(spent) == 15 for spent in times.values())
    # Measured on an idle machine: 0.2 ms for one turn, 0.8 ms for forty.
    assert best["chain of 1"] - best["bare"] < 10 and best["conversation of 1"] - best["bare"] < 10
    assert best["chain of 40"] - best["bare"] < 30 and best["conversation of 40"] - best["bare"] < 30
    assert statistics.median(times["chain of 40"]) < 500
