"""Computes the parts of pages that may take long, so that no page waits for them.

The sums of the journal read every row of a period, and take the longer the more rows there are. A page starts the
computation and waits only a tenth of a second. If the result is not ready by then, the page shows a placeholder. The
browser replaces the placeholder with the part, which waits for the same computation.

Invariants: a part shows whole results and never an estimate. The computations of a process that read the database run
one after the other. While a computation runs, no second computation with the same key starts. A page starts a new
computation unless one runs, so a loaded page shows no old result. Only the part that the browser loads after its page
reuses a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, Generic, TypeVar

from antiphon.console.site import PageCall
from antiphon.engine.waiting import look_at

T = TypeVar("T")
SOON: Final = 0.1
"""The seconds that a page waits for a part."""
_KEPT: Final = 5.0
"""The seconds for which a result waits for the browser that loads the part."""


class SlowPart(Generic[T]):
    """The running and the newest computations of one part. A key identifies a computation, such as the owner and the
    period of the part."""

    def __init__(self, turn: AbstractAsyncContextManager[object], seconds: float = SOON) -> None:
        """A computation holds `turn`: the lock `Reading.turn` for a computation that reads the database, or a null
        context for any other computation. `seconds`: the time that a page waits for a result."""
        self._turn = turn
        self._seconds = seconds
        self._tasks: dict[Hashable, asyncio.Future[T]] = {}

    async def soon(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result, or None if it is not ready in time. The computation then continues for `whole`."""
        task = self._running(key, compute)
        await asyncio.wait({task}, timeout=self._seconds)
        return task.result() if task.done() else None

    async def shown(self, call: PageCall, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result for a page. A browser without scripts requests the page with `whole=1`, and the page then
        waits for the result."""
        if call.query("whole") == "1":
            return await asyncio.shield(self._running(key, compute))
        return await self.soon(key, compute)

    async def whole(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the running computation, or of one that has just succeeded, or else compute it."""
        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._start(key, compute)
        return await asyncio.shield(task)

    def _running(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """Return the running computation, or start one."""
        task = self._tasks.get(key)
        return self._start(key, compute) if task is None or task.done() else task

    def _start(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        task = self._tasks[key] = asyncio.ensure_future(self._in_turn(compute))
        task.add_done_callback(look_at)
        task.add_done_callback(partial(self._ended, key))
        return task

    async def _in_turn(self, compute: Callable[[], Awaitable[T]]) -> T:
        async with self._turn:
            return await compute()

    def _ended(self, key: Hashable, task: asyncio.Future[T]) -> None:
        task.get_loop().call_later(_KEPT, self._forget, key, task)

    def _forget(self, key: Hashable, task: asyncio.Future[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
