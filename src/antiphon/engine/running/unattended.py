"""Runs a request to its end after its client disconnects.

Lives here: the task of such a request, and the queue of actions for its client. Not here: which requests these are
(`ResponseExchange.goes_on`), performing their actions (`runner.py`).

Invariants: at most `_AHEAD` actions wait for a client. No action waits for a client that disconnected. The door waits
for the end of the request, so it counts as in flight, unless the process stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

import structlog

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import ClientAction, Finish

_log = structlog.get_logger(__name__)

_AHEAD = 16

Actions = AsyncGenerator[ClientAction, None]


class Unattended:
    """The unattended requests of one process."""

    def __init__(self) -> None:
        self._tasks: dict[ResponseExchange, asyncio.Task[Finish | None]] = {}

    async def hand_out(self, exchange: ResponseExchange, actions: Actions) -> Actions:
        """Yield the actions as they come. Their task continues when this generator is closed."""
        feed = _Feed()
        task = asyncio.get_running_loop().create_task(_perform(actions, feed))
        self._tasks[exchange] = task
        task.add_done_callback(partial(self._ended, exchange))
        try:
            while (action := await feed.take()) is not None:
                yield action
            await asyncio.wait({task})
            task.result()
        finally:
            feed.leave()

    async def end(self, exchange: ResponseExchange, stopping: Callable[[], bool]) -> Finish | None:
        """Wait for the end of a request whose client disconnected. None when there is no such request, or it was broken
        off. A cancellation does not end this wait. It breaks the request off if the process is `stopping`."""
        task = self._tasks.get(exchange)
        if task is None:
            return None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                # The loop goes on: another cancellation (the client leaves while the process stops) must not end the
                # wait before the task has ended.
                if stopping() and not task.cancelling():
                    task.cancel()
        return task.result() if not task.cancelled() and task.exception() is None else None

    async def stop(self, exchange: ResponseExchange) -> None:
        """Break the request off if it still runs."""
        if (task := self._tasks.get(exchange)) is not None:
            task.cancel()
            await asyncio.wait({task})

    def _ended(self, exchange: ResponseExchange, task: asyncio.Task[Finish | None]) -> None:
        del self._tasks[exchange]
        if not task.cancelled() and (bug := task.exception()) is not None:
            _log.error("exchange_failed", response_id=exchange.known.response_id, exc_info=bug)


async def _perform(actions: Actions, feed: _Feed) -> Finish | None:
    finish = None
    try:
        async with aclosing(actions):
            async for action in actions:
                if isinstance(action, Finish):
                    finish = action
                await feed.put(action)
    finally:
        feed.end()
    return finish


class _Feed:
    """A queue of actions from one task to another, whose reader may leave."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AHEAD)
        self._actions: asyncio.Queue[ClientAction | None] = asyncio.Queue()
        self._left = False

    async def put(self, action: ClientAction) -> None:
        """Put one action, once there is room for it."""
        if not self._left:
            await self._room.acquire()
            self._actions.put_nowait(action)

    def end(self) -> None:
        """Mark the end of the actions."""
        self._actions.put_nowait(None)

    async def take(self) -> ClientAction | None:
        """The next action, or None after the last."""
        action = await self._actions.get()
        self._room.release()
        return action

    def leave(self) -> None:
        """The reader has left: `put` no longer waits."""
        self._left = True
        self._room.release()
