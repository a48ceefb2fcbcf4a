"""Who still uses something that is replaced while it is in use.

Lives here: counting them, and waiting for the last. Not here: what is replaced (`app/generation.py`).

Invariant: each user is counted from its beginning to its end, however that comes.
"""

from __future__ import annotations

import asyncio


class Users:
    """A context manager for everybody: `with users:` while it is used."""

    __slots__ = ("_gone", "count")

    def __init__(self) -> None:
        self.count = 0
        """How many there are now."""
        self._gone: asyncio.Event | None = None

    def __enter__(self) -> Users:
        self.count += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count and self._gone is not None:
            self._gone.set()

    async def gone(self, seconds: float) -> bool:
        """Wait until nobody uses it; False when `seconds` passed first. For what no one can begin to use any more."""
        if not self.count:
            return True
        self._gone = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True
