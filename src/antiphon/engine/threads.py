"""Work that takes long enough to hold up every other stream: done in a thread.

Lives here: when that is so, and how a request waits for it. Not here: what the work is.

A thread does not make Python faster, but it takes turns with the event loop: the others wait for a millisecond at a
time (`process.run_loop` sets how long a turn is), not for tens of them.

Invariant: whoever waits goes on only once the thread has ended, also when it is cancelled meanwhile: nobody else
touches what the thread works on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["LARGE", "apart"]

LARGE = 256 << 10
"""Bytes of JSON beyond which reading and translating them takes more than about a millisecond."""


async def apart(work: Callable[[], None]) -> None:
    """Do the work in a thread and wait for its end."""
    done = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled = False
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            cancelled = True
    done.result()
    if cancelled:
        raise asyncio.CancelledError
