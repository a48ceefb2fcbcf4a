"""A bounded queue from one task to another, whose taker waits for a limited time.

Lives here: waiting for a part and for room. Not here: what the parts are (`upstream_pump.py`).

`asyncio.Queue` with `asyncio.timeout` around it makes a timer, cancels it and asks for the current task at every part
of every stream. Here one timer is kept for all waits: it looks when it runs out whether the wait is over, and
otherwise goes on for the rest.

Invariants: no more than `size` parts wait; parts come out in the order in which they were put; nothing is lost when
a wait ends without a part.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Part = TypeVar("Part")


class PartQueue(Generic[Part]):
    """For one task that puts and one that gets."""

    __slots__ = ("_given_until", "_parts", "_room", "_size", "_timer", "_waiter")

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: deque[Part] = deque()
        # True: a part came; False: the time is over.
        self._waiter: asyncio.Future[bool] | None = None
        self._room: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._given_until = 0.0

    async def put(self, part: Part) -> None:
        """Add a part, once there is room for it."""
        while len(self._parts) >= self._size:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        self._parts.append(part)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def get(self, seconds: float) -> Part:
        """The next part. Raises `TimeoutError` when none comes for so many seconds."""
        if not self._parts and not await self._wait(seconds):
            raise TimeoutError
        part = self._parts.popleft()
        self._make_room()
        return part

    def clear(self) -> None:
        """Drop what waits; more may be put."""
        self._parts.clear()
        self._make_room()

    def close(self) -> None:
        """Nothing will be waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _wait(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        self._given_until = until = loop.time() + seconds
        if self._timer is not None and self._timer.when() > until:
            self.close()
        if self._timer is None:
            self._timer = loop.call_at(until, self._ring, loop)
        self._waiter = loop.create_future()
        try:
            # A part may have come in the same turn as the end of the time.
            return await self._waiter or bool(self._parts)
        finally:
            self._waiter = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if loop.time() < self._given_until:
            # It was set for an earlier wait.
            self._timer = loop.call_at(self._given_until, self._ring, loop)
        else:
            self._waiter.set_result(False)
