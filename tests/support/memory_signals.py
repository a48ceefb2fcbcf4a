"""`Signals` over a `JobStore` of the same process: it polls the store, and tests trigger the notifications."""

from __future__ import annotations

from collections.abc import Callable, Collection

from antiphon.engine.ports.jobs import News, Pace, Seen
from antiphon.stores.jobs import JobStore

_PACE = Pace(0.05, 0.05, 0.05)


class MemorySignals:
    """The signals. `told` counts the notifications of new jobs. `hear` is the callback for notifications. `looks` has
    the queries."""

    def __init__(self, jobs: JobStore, pace: Pace = _PACE) -> None:
        self.pace = pace
        self._jobs = jobs
        self.told = 0
        self.looks: list[tuple[list[str], str | None]] = []
        self.hear: Callable[[News], None] = lambda news: None

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        self.looks.append((sorted(followed), worker))
        held = await self._jobs.held(worker) if worker is not None else frozenset[str]()
        return Seen(await self._jobs.progress(followed) if followed else {}, held)

    def tell_queued(self) -> None:
        self.told += 1

    def listen(self, hear: Callable[[News], None]) -> None:
        self.hear = hear
