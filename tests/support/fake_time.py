"""An event loop with a simulated clock, so that tests wait for no real time and every time is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while tasks can run, and then jumps to the next timer."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    @property
    def timers(self) -> list[float]:
        """The times at which the pending timers fire."""
        loop: Any = self
        return [timer.when() for timer in loop._scheduled if not timer.cancelled()]

    def _run_once(self) -> None:
        loop: Any = self
        timers = self.timers
        if not loop._ready and timers:
            self._now = max(self._now, min(timers))
        super()._run_once()  # type: ignore[misc]


def in_fake_time(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine with the simulated clock, which starts at 0."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(work)


def fake_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Decorate a test so that it runs with the simulated clock."""

    @wraps(test)
    def run(*given: P.args, **named: P.kwargs) -> None:
        in_fake_time(test(*given, **named))

    return run
