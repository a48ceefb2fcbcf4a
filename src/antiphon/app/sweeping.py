"""Runs sweeps, which delete expired data, at intervals.

This module schedules one sweep, and logs its failures. The stores delete the data, and `app/build.py` decides which
sweeps a process runs.

Invariant: later sweeps run even if a sweep fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.engine.waiting import stop
from antiphon.errors import StoreError

_log = structlog.get_logger(__name__)


class Sweeper:
    """Calls `sweep` immediately and then every `seconds`. Sweeps never overlap, and none starts after `aclose`. `sweep`
    deletes expired objects, and returns the number of deleted objects of each kind.

    `take_turn` returns whether this process runs the next sweep. After `take_turn` has returned True, no other process
    runs a sweep for `seconds`.
    """

    def __init__(
        self,
        what: str,
        sweep: Callable[[], Awaitable[tuple[int, ...]]],
        seconds: float,
        take_turn: Callable[[str, float], Awaitable[bool]] | None = None,
    ) -> None:
        self._what = what
        self._take_turn = take_turn
        self._sweep = sweep
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the sweeps as a task of the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop the sweeps. This method cancels a running sweep."""
        await stop(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            try:
                mine = self._take_turn is None or await self._take_turn(self._what, self._seconds)
                gone = await self._sweep() if mine else ()
            except StoreError as error:
                _log.warning("sweep_failed", what=self._what, error=str(error))
            except Exception:
                _log.warning("sweep_failed", what=self._what, exc_info=True)
            else:
                if any(gone):
                    _log.info("swept", what=self._what, gone=gone)
            await asyncio.sleep(self._seconds)
