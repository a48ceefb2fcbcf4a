"""Streams a background response to clients, from any process, while a worker generates the response.

This module records which clients wait for which response, and reads the stream in a loop. Not here: the workers that
write the stream (`workers.py`), the headers and status codes of the answers (`api/`,
`engine/exchange/response_exchange.py`).

Followers read all events from the store, even in the process that writes the events. So all clients get the same
events, and only durable events. In the writing process each write wakes the followers. The signal watcher
(`signal_watcher.py`) wakes the followers after writes by other processes.

Invariant: a client gets each event once and in order. The stream ends with `[DONE]` exactly when the response is over.
When the process stops, the stream ends without `[DONE]`. The client can then resume the stream at any
other process, from the event after the last event that the client received.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from antiphon.engine.ports.jobs import Progress, is_over
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.stores.jobs import JobStore
from antiphon.translation.events.encode import DONE, KEEPALIVE

_PIECES = 64


@dataclass(eq=False)
class _Follower:
    """A client that waits for events whose `sequence_number` is greater than `after`."""

    after: int
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Followers:
    """All followers of background responses in one process.

    `keepalive` is the number of seconds without an event after which a follower sends an SSE comment. A follower also
    reads the store `look` seconds after its last read, because a signal may have been lost.
    """

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
        """The number of streams that clients follow at present."""
        return sum(map(len, self._followers.values()))

    def let_go(self) -> None:
        """End every stream after its stored events, because the process stops. A stream that begins after this
        call ends in the same way."""
        self._leaving = True
        for followers in self._followers.values():
            for follower in followers:
                follower.news.set()

    @contextmanager
    def written_here(self, response_id: str) -> Iterator[None]:
        """Mark that this process writes the response's stream during the `with` block. The writing code calls `changed`
        after each write."""
        self._here.add(response_id)
        try:
            yield
        finally:
            self._here.discard(response_id)
            self.changed(response_id)
            if response_id in self._followers:
                self._signal_watcher.wake_soon()

    def changed(self, response_id: str) -> None:
        """Wake the response's followers, because its stream has new events or is over."""
        for follower in self._followers.get(response_id, ()):
            follower.news.set()

    async def follow(self, owner: str, response_id: str, after: int = -1) -> AsyncGenerator[bytes, None]:
        """Yield the events whose `sequence_number` is greater than `after` when the store has them, then `[DONE]`.

        If no event comes for a while, the generator yields a keep-alive comment. After `let_go` or a deletion of the
        response, the generator ends early and without `[DONE]`. Raises `StoreError`.
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
                    # The owner has deleted the response, so the stream ends without an error.
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

    # Streams that other processes write

    def elsewhere(self) -> list[str]:
        """Return the ids of the responses that this process follows and other processes write."""
        return [response_id for response_id in self._followers if response_id not in self._here]

    def seen(self, asked: Collection[str], progress: Mapping[str, Progress]) -> None:
        """Wake the followers whose responses have new events or have ended. `asked` are the ids of the polled
        responses. If `progress` lacks one of them, that response was deleted."""
        for response_id in asked:
            now = progress.get(response_id)
            for follower in self._followers.get(response_id, ()):
                if now is None or now.last_event > follower.after or is_over(now.status):
                    follower.news.set()
