"""Polls the store for changes by other processes: followed streams, this process's jobs, and queued jobs.

This module runs the one polling task of a process, handles notifications (`News`), and decides when a worker claims
jobs (`ClaimPace`). Not here: reading streams (`followers.py`), claiming and running jobs (`workers.py`), the delivery
of notifications (`stores/`).

Invariants: One query covers all streams and jobs, and only one query runs at a time. Polls that notifications trigger
are at least `_APART` seconds apart. The task does not poll while this process has no followed stream and no running
job.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from antiphon.engine.ports.jobs import News, Pace, Signals
from antiphon.errors import StoreError
from antiphon.observability.repeated_failures import Outage

if TYPE_CHECKING:
    from antiphon.engine.running.followers import Followers
    from antiphon.engine.running.workers import Workers

_log = structlog.get_logger(__name__)

_APART = 0.05
_LONGEST_AFTER_FAILURE = 1.0
_GROWTH = 1.5
_HEARD_APART = 0.25
_HEARD_SPREAD = 0.03


class SignalWatcher:
    """The polling task of a process. `Followers` assigns itself to the attribute `following`, and `Workers` to
    `holding`."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.following: Followers | None = None
        self.holding: Workers | None = None
        self._woken = asyncio.Event()
        self._looked_at = float("-inf")
        self._soon: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "progress_not_read", "progress_read_again")

    def start(self) -> None:
        """Subscribe to the notifications that other processes send through the store."""
        self.signals.listen(self.hear)

    @property
    def watching(self) -> bool:
        """Whether the polling task runs."""
        return self._task is not None and not self._task.done()

    def wake(self) -> None:
        """Poll immediately, because this process itself may have changed a stream or a job."""
        self._woken.set()
        if not self.watching and any(self._waits_for()):
            self._task = asyncio.get_running_loop().create_task(self._look_on())

    def wake_soon(self) -> None:
        """Schedule one poll, for a new follower, a new job or a notification. Further calls before that poll have no
        effect."""
        if self._soon is None:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_at(max(loop.time(), self._looked_at + _APART), self._wake_now)

    def _wake_now(self) -> None:
        self._soon = None
        self.wake()

    def hear(self, news: News) -> None:
        """Handle a notification from another process: tell the followers which responses changed, and this process's
        workers that jobs are queued. If the notification concerns a running job of this process, or if notifications
        may be lost, schedule a poll."""
        if self.following is not None:
            for response_id in news.responses:
                self.following.changed(response_id)
        if self.holding is not None and (news.queued or news.anything):
            self.holding.heard_of_jobs()
        if news.anything or not news.responses.isdisjoint(self._waits_for()[1]):
            self.wake_soon()

    def _waits_for(self) -> tuple[Collection[str], frozenset[str]]:
        followed = self.following.elsewhere() if self.following is not None else ()
        return followed, self.holding.running if self.holding is not None else frozenset()

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while any(asked := self._waits_for()):
            self._woken.clear()
            self._looked_at = loop.time()
            try:
                await self._look(*asked)
                self._outage.recovered()
                failures = 0
            except StoreError as error:
                self._outage.failed(error=str(error))
                failures += 1
            except Exception:
                _log.error("lookout_failed", exc_info=True)
                failures += 1
            seconds = self.signals.pace.look
            if failures:
                seconds = max(seconds, min(_LONGEST_AFTER_FAILURE, seconds * 2**failures))
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _look(self, followed: Collection[str], running: frozenset[str]) -> None:
        name = self.holding.name if self.holding is not None and running else None
        seen = await self.signals.look(followed, name)
        if self.following is not None:
            self.following.seen(followed, seen.progress)
        if self.holding is not None and running:
            self.holding.keep(running, seen.held)


class ClaimPace:
    """Decides when a worker with free slots claims jobs.

    The worker claims immediately when this process queues a response or frees a slot. A notification from another
    process makes the worker claim after a short random delay, at most every `_HEARD_APART` seconds. The delay spreads
    the load, because hundreds of processes may get the same notification, and only one gets the job. Without a
    notification, the worker polls the store. The worker polls less often while there are no jobs.

    All times are event loop times. `pace` returns the polling intervals. `draw` returns a random number from 0 to 1.
    """

    def __init__(self, pace: Callable[[], Pace], draw: Callable[[], float] = random.random) -> None:
        self._pace = pace
        self._draw = draw
        self._seconds = 0.0
        self._at = 0.0
        self._last = float("-inf")
        self._not_before = 0.0

    def left(self, now: float) -> float:
        """Return the seconds until the worker next claims jobs. Returns 0 when a claim is due."""
        return max(0.0, self._at - now, self._not_before - now)

    def hold_off(self, until: float) -> None:
        """Forbid claims before the time `until`."""
        self._not_before = until

    def soon(self) -> None:
        """Schedule an immediate claim, because this process queued a job or freed a slot."""
        self._at = self._seconds = 0.0

    def heard(self, now: float) -> None:
        """Schedule a claim after a short random delay, because another process has notified this process of queued
        jobs."""
        self._at = min(self._at, max(self._last + _HEARD_APART, now + self._draw() * _HEARD_SPREAD))

    def asks(self, now: float) -> None:
        """Record a claim at the time `now`, and schedule the next claim. The pause grows until a claim finds jobs."""
        pace = self._pace()
        self._last = now
        self._seconds = min(pace.claim_most, max(pace.claim, self._seconds * _GROWTH))
        # The random factor spreads the claims of processes that started together.
        self._at = now + self._seconds * (0.75 + 0.5 * self._draw())

    def found(self) -> None:
        """Record that a claim found jobs, so that the next pause is short again."""
        self._seconds = 0.0
