"""An event loop whose clock jumps: nothing is waited for, and every time is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while there is something to do, then it is the time of the next timer."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    @property
    def timers(self) -> list[float]:
        """When those that wait go off."""
        loop: Any = self
        return [timer.when() for timer in loop._scheduled if not timer.cancelled()]

    def _run_once(self) -> None:
        loop: Any = self
        timers = self.timers
        if not loop._ready and timers:
            self._now = max(self._now, min(timers))
        super()._run_once()  # type: ignore[misc]


def in_fake_time(work: Coroutine[Any, Any, T]) -> T:
    """Run it, from the time 0 on."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(work)


def fake_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that runs in fake time."""

    @wraps(test)
    def run(*given: P.args, **named: P.kwargs) -> None:
        in_fake_time(test(*given, **named))

    return run
