"""Work that is done again and again beside the requests: taking away what expired or was left behind.

Lives here: when it is done, by which process, and that its failures harm nobody. Not here: what is taken away (the
stores).

Invariant: one sweep at a time, and none after `aclose`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from antiphon.errors import StoreError

_log = structlog.get_logger(__name__)


class Sweeper:
    """Calls `sweep` at once and then every so many seconds. `sweep` answers how many things went, of each kind.

    `take_turn`: whether this process is the one to do it, where several could; nobody else is for so many seconds.
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
        """Begin, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """End; what was begun is broken off."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
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
