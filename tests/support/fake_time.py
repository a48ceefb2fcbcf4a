"""An event loop with a simulated clock, so that tests wait for no real time and every time is exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import wraps
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while tasks can run, and then jumps to the next timer."""

    def __init__(self) -> None:
        self._now = 0.0
        self._made: list[asyncio.TimerHandle] = []
        super().__init__(_Jumping(self.jump))

    def time(self) -> float:
        return self._now

    @property
    def timers(self) -> list[float]:
        """The times at which the pending timers fire."""
        return [timer.when() for timer in self._made if timer.when() > self._now and not timer.cancelled()]

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self._made = [one for one in self._made if one.when() > self._now and not one.cancelled()]
        self._made.append(timer)
        return timer

    def jump(self) -> None:
        """Set the clock to the next timer."""
        self._now = min(self.timers, default=self._now)


class _Jumping(selectors.DefaultSelector):
    """A selector that lets the clock jump where the event loop would wait for a timer."""

    def __init__(self, jump: Callable[[], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not timeout:
            return super().select(timeout)
        self._jump()
        return super().select(0)


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
