"""Runs blocking work in thread pools, and keeps tasks alive when the request that waits for them is cancelled.

Lives here: threads for such work, of which each kind has its own, and how a request waits for one; and asyncio work
that outlives the cancellation of who waits for it. Not here: what the work is.

A thread does not make Python faster, but it takes turns with the event loop: the others wait for a millisecond at a
time (`process.run_loop` sets how long a turn is), not for tens of them.

Each kind has its own threads, so that none takes what another needs: a disk that stands still, code that does not
answer and a client's slow name server occupy those of their kind. The loop's own executor is left to libraries (which
resolve upstreams' names there).

Invariants: whoever waits for `apart` goes on only once the thread has ended, also when it is cancelled meanwhile:
nobody else touches what the thread works on. Whoever waits for a thread of a pool gets one or a 503, within a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from antiphon.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 256 << 10
"""Bytes of JSON beyond which reading and translating them takes more than about a millisecond."""

_WAIT_SECONDS = 30.0
_pools: WeakSet[Pool] = WeakSet()


class Pool:
    """Threads for one kind of work, made when they are needed. `seconds`: the longest that anybody waits for one."""

    def __init__(self, name: str, threads: int, seconds: float = _WAIT_SECONDS) -> None:
        self.name = name
        self._most = threads
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"antiphon-{name}")
        self._count = threading.Lock()
        self._given = 0
        _pools.add(self)

    @property
    def busy(self) -> int:
        """Threads that work."""
        return min(self._given, self._most)

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return max(0, self._given - self._most)

    async def run(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What the work returns, done in a thread. Raises `Unavailable` when none gets free in time.

        Work that has begun goes on when its caller is cancelled; work that has not is never done then.
        """
        submitted, waits = self._submit(work, *given, **named)
        done = asyncio.wrap_future(submitted)
        if waits:
            try:
                await asyncio.wait({done}, timeout=self._seconds if self._seconds < math.inf else None)
            except asyncio.CancelledError:
                done.cancel()
                raise
            if not done.done() and submitted.cancel():
                raise Unavailable(
                    f"The server is busy (threads for {self.name}). Try again shortly.",
                    code="overloaded",
                    headers=(("retry-after", "1"),),
                )
        return await done

    def _submit(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> tuple[Future[T], bool]:
        """The work, and whether there is more of it than threads."""
        context = contextvars.copy_context()
        submitted = self._threads.submit(lambda: context.run(work, *given, **named))
        with self._count:
            self._given += 1
            waits = self._given > self._most
        submitted.add_done_callback(self._ended)
        return submitted, waits

    def _ended(self, _: object) -> None:
        with self._count:
            self._given -= 1


# All of it is computing over bytes that are limited: it ends by itself.
_TRANSLATION = Pool("translation", 4, math.inf)
DECODING = Pool("decoding", 2)
"""Undoing the compression of requests."""
SEARCH = Pool("search", 2)
"""Comparing vectors."""
PAGES = Pool("pages", 2)
"""Reading web pages."""
DOCUMENTS = Pool("documents", 4)
"""Documents on their way into a vector store."""
RECORDS = Pool("records", 4)
"""What is known of containers, on the disk."""
SANDBOX = Pool("sandbox", 16)
"""Containers' files, and talking to the code in them."""
SIZES = Pool("sizes", 1)
"""How much is on the disk."""


def all_pools() -> tuple[Pool, ...]:
    """Every pool of this process; some have the same name."""
    return tuple(_pools)


async def apart(work: Callable[[], T]) -> T:
    """Do the work in a thread and wait for its end; what it returns."""
    return await to_the_end(_TRANSLATION.run(work))


async def to_the_end(work: Awaitable[T]) -> T:
    """Wait for bounded work although this task is cancelled meanwhile; what it returns or raises.

    A cancellation is raised once the work has ended well; what the work itself raises comes before it.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


def look_at(task: asyncio.Future[Any]) -> None:
    """Take the outcome of what nobody waits for any more, so that it is not reported as never retrieved."""
    if not task.cancelled():
        task.exception()
