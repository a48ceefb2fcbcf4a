"""Reading the stream of a background response while it is made, from any process.

Lives here: who waits for which response, and the loop that reads on. Not here: who writes the stream (`workers.py`),
heads and status codes (`api/`, `exchange.py`).

What is sent was read from the store, by followers in the writing process as well: so all of them see the same, and
nothing that is not durable yet. In that process a wake-up follows every write; elsewhere the store is asked again
after `poll` seconds.

Invariant: events come in their order and once; the stream ends with `[DONE]` exactly when the response is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from antiphon.engine.job_bodies import is_over
from antiphon.engine.jobs import JobStore
from antiphon.errors import StoreError
from antiphon.translation.encode import DONE, KEEPALIVE

__all__ = ["Followers"]

_PIECES = 64
_SLOW_POLL = 1.0


class Followers:
    """One per process. `poll`: seconds between two looks at what another process writes."""

    def __init__(self, jobs: JobStore, *, poll: float = 0.05, keepalive: float = 15.0) -> None:
        self._jobs = jobs
        self._poll = poll
        self._keepalive = keepalive
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._here: set[str] = set()

    @contextmanager
    def written_here(self, response_id: str) -> Iterator[None]:
        """This process writes the response's stream now, and calls `changed`."""
        self._here.add(response_id)
        try:
            yield
        finally:
            self._here.discard(response_id)
            self.changed(response_id)

    def changed(self, response_id: str) -> None:
        """The response's stream went on, or is over."""
        for waiting in self._waiting.get(response_id, ()):
            waiting.set()

    async def follow(self, owner: str, response_id: str, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events after this number, as they come, and `[DONE]`; keep-alive comments in silence.

        Raises `StoreError` when the response is deleted meanwhile.
        """
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        self._waiting.setdefault(response_id, set()).add(changed)
        try:
            sent = loop.time()
            while True:
                changed.clear()
                page = await self._jobs.events(owner, response_id, after, _PIECES)
                if page is None:
                    raise StoreError("The response was deleted while its stream was read.")
                for piece in page.pieces:
                    data = piece.after(after)
                    after = piece.last
                    yield data
                    sent = loop.time()
                if page.more:
                    continue
                if is_over(page.status):
                    yield DONE
                    return
                await self._pause(changed, response_id)
                if loop.time() - sent >= self._keepalive:
                    yield KEEPALIVE
                    sent = loop.time()
        finally:
            waiting = self._waiting[response_id]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[response_id]

    async def _pause(self, changed: asyncio.Event, response_id: str) -> None:
        seconds = _SLOW_POLL if response_id in self._here else self._poll
        try:
            async with asyncio.timeout(min(seconds, self._keepalive)):
                await changed.wait()
        except TimeoutError:
            pass
