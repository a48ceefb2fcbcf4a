"""Runs a request to its end after its client disconnects.

This module runs such a request in a separate task, and queues the actions for its client. Not here: the decision
whether a request continues (`ResponseExchange.goes_on`), performing its actions (`runner.py`).

Invariants: at most `_AHEAD` actions are queued for a client. After the client disconnects, the task does not wait for
the client. The server waits for the end of the request, so the request counts as in flight until then or until the
process stops.
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
    """The requests of one process that may continue after their clients disconnect."""

    def __init__(self) -> None:
        self._tasks: dict[ResponseExchange, asyncio.Task[Finish | None]] = {}

    async def hand_out(self, exchange: ResponseExchange, actions: Actions) -> Actions:
        """Perform `actions` in a separate task, and yield each action when it comes. The task continues after this
        generator is closed."""
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
        """Wait for the end of a request whose client disconnected, and return its `Finish`. Returns None if there is no
        such request, or if the request failed or was broken off. If the calling task is cancelled, the method continues
        to wait. If the process is `stopping`, the first cancellation also cancels the request."""
        task = self._tasks.get(exchange)
        if task is None:
            return None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                # Keep waiting. A second cancellation (the client disconnects while the process stops) must not end the
                # wait before the task ends.
                if stopping() and not task.cancelling():
                    task.cancel()
        return task.result() if not task.cancelled() and task.exception() is None else None

    async def stop(self, exchange: ResponseExchange) -> None:
        """Cancel the request's task if it still runs, and wait for its end."""
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
    """A bounded queue of actions between two tasks. The reading task may stop reading at any time."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AHEAD)
        self._actions: asyncio.Queue[ClientAction | None] = asyncio.Queue()
        self._left = False

    async def put(self, action: ClientAction) -> None:
        """Add one action, after waiting for room in the queue. Drops the action if the reading task has stopped
        reading."""
        if not self._left:
            await self._room.acquire()
            self._actions.put_nowait(action)

    def end(self) -> None:
        """Tell the reading task that no more actions follow."""
        self._actions.put_nowait(None)

    async def take(self) -> ClientAction | None:
        """Return the next action, or None after the last action."""
        action = await self._actions.get()
        self._room.release()
        return action

    def leave(self) -> None:
        """Record that the reading task has stopped reading, so that `put` no longer waits."""
        self._left = True
        self._room.release()
