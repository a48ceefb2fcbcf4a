"""Streams a background response to clients, from any process, while a worker makes it.

Lives here: who waits for which response, and the loop that reads on. Not here: who writes the stream (`workers.py`),
heads and status codes (`api/`, `engine/exchange/response_exchange.py`).

What is sent was read from the store, by followers in the writing process as well: so all of them see the same, and
nothing that is not durable yet. In that process a wake-up follows every write; of what others write the process's
signal watcher tells (`signal_watcher.py`).

Invariant: events come in their order and once; the stream ends with `[DONE]` exactly when the response is over. When
the process leaves it ends without: any other process reads on from the last event's number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from antiphon.engine.ports.jobs import Progress
from antiphon.engine.ports.stored_bodies import is_over
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.stores.jobs import JobStore
from antiphon.translation.events.encode import DONE, KEEPALIVE

_PIECES = 64


@dataclass(eq=False)
class _Follower:
    """Who waits for events behind the number `after`."""

    after: int
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Followers:
    """One per process. `keepalive`: seconds of silence after which a comment is sent. `look`: seconds without a signal
    after which the store is asked anyway; a safety net, which no other code relies on."""

    def __init__(
        self, jobs: JobStore, signal_watcher: SignalWatcher, *, keepalive: float = 15.0, look: float = 30.0
    ) -> None:
        self._jobs = jobs
        self._signal_watcher = signal_watcher
        signal_watcher.following = self
        self._keepalive = keepalive
        self._look = look
        self._followers: dict[str, set[_Follower]] = {}
        self._here: set[str] = set()
        self._leaving = False

    @property
    def count(self) -> int:
        """How many streams are read just now."""
        return sum(map(len, self._followers.values()))

    def let_go(self) -> None:
        """This process leaves: every stream ends after what is there of it now, and so does every later one."""
        self._leaving = True
        for followers in self._followers.values():
            for follower in followers:
                follower.news.set()

    @contextmanager
    def written_here(self, response_id: str) -> Iterator[None]:
        """This process writes the response's stream now, and calls `changed`."""
        self._here.add(response_id)
        try:
            yield
        finally:
            self._here.discard(response_id)
            self.changed(response_id)
            if response_id in self._followers:
                self._signal_watcher.wake_soon()

    def changed(self, response_id: str) -> None:
        """The response's stream went on, or is over."""
        for follower in self._followers.get(response_id, ()):
            follower.news.set()

    async def follow(self, owner: str, response_id: str, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events after this number, as they come, and `[DONE]`; keep-alive comments in silence. After `let_go` it
        ends early, and without `[DONE]`.

        The same when the response is deleted meanwhile. Raises `StoreError`.
        """
        loop = asyncio.get_running_loop()
        me = _Follower(after)
        self._followers.setdefault(response_id, set()).add(me)
        if response_id not in self._here:
            self._signal_watcher.wake_soon()
        try:
            sent = loop.time()
            while True:
                me.news.clear()
                look_again = loop.time() + self._look
                page = await self._jobs.events(owner, response_id, me.after, _PIECES)
                if page is None:
                    # A client's own wish, if another one's: nothing has failed.
                    return
                for piece in page.pieces:
                    data = piece.after(me.after)
                    me.after = piece.last
                    yield data
                    sent = loop.time()
                if not page.more and is_over(page.status):
                    yield DONE
                    return
                if self._leaving:
                    return
                if page.more:
                    continue
                while not me.news.is_set() and loop.time() < look_again:
                    await self._wait(me, min(look_again, sent + self._keepalive))
                    if loop.time() - sent >= self._keepalive:
                        yield KEEPALIVE
                        sent = loop.time()
        finally:
            others = self._followers[response_id]
            others.discard(me)
            if not others:
                del self._followers[response_id]

    async def _wait(self, me: _Follower, until: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await me.news.wait()

    # What other processes write

    def elsewhere(self) -> list[str]:
        """The responses that are followed here and written by others."""
        return [response_id for response_id in self._followers if response_id not in self._here]

    def seen(self, asked: Collection[str], progress: Mapping[str, Progress]) -> None:
        """So far are these responses; one that is not there is gone."""
        for response_id in asked:
            now = progress.get(response_id)
            for follower in self._followers.get(response_id, ()):
                if now is None or now.last_event > follower.after or is_over(now.status):
                    follower.news.set()
