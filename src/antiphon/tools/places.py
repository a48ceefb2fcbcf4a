"""The places in which calls run at once, and whose turn it is.

Lives here: how many calls of a process, of one owner and of one response run at once, and who is next. Not here: what
runs, and for how long (`box.py`).

A response has at most a quarter of the places, an owner three quarters: whatever one of them asks for, there is room
for others. A place that becomes free goes to the owner that has the fewest, and among these to the one that waits
longest.

Invariant: nobody waits while there is a place that it may have.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_Waiting = deque[tuple[str, asyncio.Future[None]]]


class Places:
    """So many places for everybody together."""

    def __init__(self, total: int) -> None:
        self._free = total
        # With very few places shares would mean that one call of a response runs after the other.
        self._max_of_response = max(2, total // 4)
        self._max_of_owner = max(2, total * 3 // 4)
        self._owners: Counter[str] = Counter()
        self._responses: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[str, _Waiting] = {}

    @asynccontextmanager
    async def one(self, owner: str, response_id: str) -> AsyncIterator[None]:
        """Wait for a place, and have it."""
        await self._take(owner, response_id)
        try:
            yield
        finally:
            self._give_back(owner, response_id)

    async def _take(self, owner: str, response_id: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append((response_id, place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # It came at the moment in which nobody wanted it any more.
                self._give_back(owner, response_id)
            else:
                self._forget(owner, place)
            raise

    def _give_back(self, owner: str, response_id: str) -> None:
        self._free += 1
        self._owners[owner] -= 1
        self._responses[owner, response_id] -= 1
        # Only what is not 0 is kept.
        self._owners += Counter()
        self._responses += Counter()
        self._serve()

    def _serve(self) -> None:
        while self._free and (chosen := self._next()) is not None:
            owner, response_id, place = chosen
            self._free -= 1
            self._owners[owner] += 1
            self._responses[owner, response_id] += 1
            self._forget(owner, place)
            place.set_result(None)

    def _next(self) -> tuple[str, str, asyncio.Future[None]] | None:
        """Who has the fewest is first; `sorted` keeps the order in which they came."""
        for owner in sorted(self._waiting, key=self._owners.__getitem__):
            if self._owners[owner] >= self._max_of_owner:
                return None
            for response_id, place in self._waiting[owner]:
                if self._responses[owner, response_id] < self._max_of_response and not place.done():
                    return owner, response_id, place
        return None

    def _forget(self, owner: str, place: asyncio.Future[None]) -> None:
        left = deque(one for one in self._waiting[owner] if one[1] is not place)
        if left:
            # At the end: who was served stands behind the others.
            del self._waiting[owner]
            self._waiting[owner] = left
        else:
            del self._waiting[owner]
