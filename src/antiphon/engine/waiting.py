"""Runs blocking work in thread pools, and keeps tasks alive when the request that waits for them is cancelled.

This module has one thread pool for each type of work, and lets a request wait for a thread. The module also runs
asyncio work that outlives the cancellation of the task that waits for it. Not here: the work itself.

A thread does not make Python faster. But the interpreter switches between a thread and the event loop about every
millisecond. So other requests wait for about a millisecond instead of tens of milliseconds. `run_loop`
(`supervisor/process.py`) sets the interpreter's switching interval.

Each type of work has a separate pool, so that one type cannot exhaust the threads of another. A disk that does not
respond, code that hangs and a slow name server block only the threads of their own pool. Only libraries use the event
loop's default executor, to resolve the host names of upstreams.

Invariants: A caller of `apart` continues only after the work has ended, even if the caller is cancelled meanwhile. So
no other task touches the data while the thread works on the data. A request that waits for a thread of a pool gets a
thread or a 503 in bounded time.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from antiphon.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 256 << 10
"""The size of a JSON body in bytes above which parsing and translating the body takes more than a millisecond."""

_WAIT_SECONDS = 30.0
_pools: WeakSet[Pool] = WeakSet()


class Pool:
    """A thread pool for one type of work. The pool starts threads on demand. A caller waits at most `seconds` for a
    thread."""

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
        """The number of threads that run work."""
        return min(self._given, self._most)

    @property
    def waiting(self) -> int:
        """The number of submitted work items that wait for a thread."""
        return max(0, self._given - self._most)

    async def run(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Run the work in a thread and return its result. Raises `Unavailable` when no thread becomes free in time.

        When the caller is cancelled, work that already runs in a thread continues. The pool drops work that still waits
        for a thread.
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
        """Submit the work. Returns the future of the work, and whether the work must wait for a thread."""
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


# Translations need no timeout: they only compute on bodies of limited size, so every translation ends.
_TRANSLATION = Pool("translation", 4, math.inf)
DECODING = Pool("decoding", 2)
"""Decompresses request bodies."""
SEARCH = Pool("search", 2)
"""Compares vectors."""
PAGES = Pool("pages", 2)
"""Extracts the text of web pages."""
DOCUMENTS = Pool("documents", 4)
"""Reads and chunks documents for vector stores."""
RECORDS = Pool("records", 4)
"""Reads and writes container records on the disk."""
SANDBOX = Pool("sandbox", 16)
"""Accesses containers' files, and talks to the code that runs in containers."""
SIZES = Pool("sizes", 1)
"""Measures the used disk space."""


def all_pools() -> tuple[Pool, ...]:
    """Return every pool of this process. Several pools may have the same name."""
    return tuple(_pools)


async def apart(work: Callable[[], T]) -> T:
    """Run the work in a thread and return its result. A cancelled caller also waits until the work ends."""
    return await to_the_end(_TRANSLATION.run(work))


async def stop(task: asyncio.Task[object] | None) -> None:
    """Cancel a task that would run forever, and wait for its end. If `task` is None, do nothing."""
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def to_the_end(work: Awaitable[T]) -> T:
    """Wait until bounded work ends, even if this task is cancelled meanwhile. Returns the work's result.

    If this task is cancelled, `to_the_end` raises `CancelledError` after the work has succeeded. If the work fails,
    `to_the_end` raises the work's error instead.
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


def look_at(task: asyncio.Future[T]) -> None:
    """Retrieve the outcome of a task that no caller awaits, so that asyncio does not log an unretrieved exception."""
    if not task.cancelled():
        task.exception()
