"""How long units are waited for, and when the writer's thread may take them: what a writer has of one event loop.

Lives here: one timer for all units of the loop that wait. Not here: what becomes of one whose time is over
(`writer.py`).

A timer for each unit would be made and cancelled with every write. This one looks, when it runs out, whose time is
over, and goes on for the rest.

Invariant: a unit is told of once for each time that it is waited for, unless it is forgotten before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from antiphon.stores.sqlite.units import Unit


class Deadlines:
    """Calls `over` with each unit whose time is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[Unit], None]) -> None:
        self.loop = loop
        self.releasing = False
        """Whether what came of this turn of the loop will be let go at its end."""
        self._over = over
        self._waiting: set[Unit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def wait(self, unit: Unit, seconds: float) -> None:
        """From now on for so long."""
        unit.due = self.loop.time() + seconds
        self._waiting.add(unit)
        self._ring_by(unit.due)

    def forget(self, unit: Unit) -> None:
        """It is waited for no longer."""
        self._waiting.discard(unit)

    def close(self) -> None:
        """Nothing is told any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_by(self, when: float) -> None:
        if self._timer is not None:
            if self._rings_at <= when:
                return
            self._timer.cancel()
        self._rings_at = when
        self._timer = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        for unit in [unit for unit in self._waiting if unit.due <= now]:
            self._waiting.discard(unit)
            self._over(unit)
        if self._waiting:
            self._ring_by(min(unit.due for unit in self._waiting))
