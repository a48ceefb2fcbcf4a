"""Moves data that was stored under a token's hash to the owner that the token's key names.

This module records the client keys that this process has seen, and runs the task that moves data. Not here: the move in
the database (`stores/owner_data.py`), the hash of a token (`doors/owners.py`), the command for other moves
(`commands/admin/owners.py`).

Without named keys, the owner of stored data is a hash of the client's bearer token. An operator may later assign a
named owner to the client's key. The gateway cannot compute the hash before a request carries the token. So a process
starts the move when it gets its first request with the token. Requests do not wait for the move.

Invariants: each process runs at most one move at a time. The task writes one log line with the cause of a failed move,
and retries the move. The queue holds at most `MOST` keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.state import NotMovable
from antiphon.engine.waiting import stop
from antiphon.errors import StoreError

MOST: Final = 10_000
_RETRY: Final = 60.0
_log = structlog.get_logger(__name__)


class Adoption:
    """Moves data from the owner ids that contain a token's hash to named owners, for the client keys that one process
    sees. The caller calls `start` and `aclose`.

    `has_data` returns whether an owner has stored data. `move(old, new)` moves the data of the owner `old` to the owner
    `new`, and raises `NotMovable` or `StoreError`. `retry`: the seconds between two attempts.
    """

    def __init__(
        self,
        has_data: Callable[[str], Awaitable[bool]],
        move: Callable[[str, str], Awaitable[None]],
        *,
        retry: float = _RETRY,
    ) -> None:
        self._has_data = has_data
        self._move = move
        self._retry = retry
        self.seen: set[str] = set()
        """The ids of the keys whose tokens this process has seen."""
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._failed: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def presented(self, caller: Caller, old: str) -> None:
        """Handle the first request with a key's token: queue a move of the data. `old` is the owner id that contains
        the token's hash."""
        if len(self.seen) < MOST:
            self.seen.add(caller.key_id)
            self._waiting.put_nowait((old, caller.owner))

    def start(self) -> None:
        """Start the task that moves data."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop the task. An interrupted move continues when a process next gets a request with the token."""
        await stop(self._task)

    async def _run(self) -> None:
        while True:
            old, new = await self._waiting.get()
            try:
                if await self._has_data(old):
                    await self._move(old, new)
                    _log.info("owner_adopted", owner=new, former=old)
                self._failed.discard(old)
            except (StoreError, NotMovable) as error:
                if old not in self._failed:
                    self._failed.add(old)
                    _log.warning("owner_not_adopted", owner=new, former=old, cause=str(error))
                asyncio.get_running_loop().call_later(self._retry, self._waiting.put_nowait, (old, new))
            except Exception:
                _log.error("owner_adoption_failed", owner=new, former=old, exc_info=True)
