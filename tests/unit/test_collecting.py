"""The collector comes by time, and never takes more than its share."""

from __future__ import annotations

import gc
from collections.abc import Callable

from antiphon.supervisor.process import collect_by_time


class _Loop:
    """One whose time a test moves."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.due.append((seconds, what))

    def turn(self) -> float:
        """Run what is due; after how many seconds that was."""
        ((delay, callback),) = self.due
        self.due.clear()
        callback()
        return delay


def test_it_comes_every_thirty_seconds_or_after_2000_times_as_long_as_it_took() -> None:
    loop, now, took = _Loop(), [0.0], [0.002]

    def collect() -> None:
        now[0] += took[0]

    collect_by_time(loop.later, collect=collect, clock=lambda: now[0])
    assert [loop.turn(), loop.turn()] == [30.0, 30.0]
    took[0] = 0.05
    loop.turn()
    assert 99.9 < loop.turn() < 100.1


def test_what_a_cycle_holds_is_freed() -> None:
    class Cycle:
        freed = False

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            Cycle.freed = True

    loop = _Loop()
    gc.disable()
    try:
        collect_by_time(loop.later)
        Cycle()
        assert not Cycle.freed
        loop.turn()
        assert Cycle.freed
    finally:
        gc.enable()
