"""Waiting for asyncio work that must not be left half done, or that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

_Done = TypeVar("_Done")


async def to_the_end(work: Awaitable[_Done]) -> _Done:
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
