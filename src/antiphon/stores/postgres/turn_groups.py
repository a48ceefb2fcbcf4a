"""Group commit for PostgreSQL: a free writer takes all queued writes at once, without delay.

Lives here: the queue and its bounds, how many write at once, and what becomes of a write whose connection was lost. Not
here: what is written (`turns.py`, `jobs.py`), connections.

A group is one statement, which stores what it can and says what that was; one that failed for a value of one of its
members is written one by one. When nobody knows whether a group took effect, a new connection is asked for each of its
members; what is not there is written again, and when that is refused asked for again, since the lost statement may have
been carried out meanwhile. Storing something twice does nothing, so all this is safe. What is not known in time is
withdrawn.

Invariants: everything that was accepted is answered exactly once, in bounded time, also while closing; success means
that it is stored, an error that it is not and will not be; nothing waits while a writer is free.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import StoreError

_log = structlog.get_logger(__name__)

_TRY_AGAIN = frozenset({"unavailable", "slow", "locked", "unknown"})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class _Unit(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def size(self) -> int: ...


U = TypeVar("U", bound=_Unit)
U_contra = TypeVar("U_contra", bound=_Unit, contravariant=True)


class Units(Protocol[U_contra]):
    """How things of one kind are stored."""

    async def write(self, group: Sequence[U_contra]) -> Collection[str]:
        """Store what can be stored; the ids of that. Raises `StoreError`: nothing was, or (`unknown`) nobody knows."""

    async def stored(self, group: Sequence[U_contra]) -> Collection[str]:
        """Which of these very ones are stored. Raises `StoreError`."""

    async def explain(self, unit: U_contra) -> Exception:
        """Why it was left out. Raises `StoreError` when that cannot be asked."""

    def withdraw(self, unit: U_contra) -> None:
        """See to it that it is not stored, though it may be, or may come to be."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """`waiting` and `waiting_bytes` may wait (more is refused at once); `group` of them, or `group_bytes`, go together;
    `writers` groups are written at once.

    What has not begun to be written after `seconds` has failed, and so has what cannot be written for so long; what may
    be stored without anybody knowing is asked for until `settle_seconds` are over.
    """

    waiting: int = 4096
    waiting_bytes: int = 256 << 20
    group: int = 64
    group_bytes: int = 1 << 20
    writers: int = 3
    seconds: float = 10.0
    settle_seconds: float = 30.0


def group_limits(timeouts: TimeoutSettings, *, connections: int, group: int = 64) -> GroupLimits:
    """The limits of groups on so many connections, of which one is left for all else."""
    settle = max(timeouts.save, timeouts.settle)
    return GroupLimits(writers=max(1, connections - 1), group=group, seconds=timeouts.save, settle_seconds=settle)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[U]):
    unit: U
    size: int
    future: asyncio.Future[None]
    entered: float
    begun: bool = False
    unsure: bool = False
    """Whether it may be stored although nobody said so."""


class Groups(Generic[U]):
    """The queue of one kind of units."""

    def __init__(self, units: Units[U], limits: GroupLimits | None = None) -> None:
        self._units = units
        self._limits = limits or GroupLimits()
        self._queue: deque[_Waiting[U]] = deque()
        self._bytes = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._closing = False
        self.groups: Counter[int] = Counter()
        """How many groups of so many there were."""

    @property
    def waiting(self) -> int:
        """Units that no writer has yet."""
        return len(self._queue)

    async def run(self, unit: U) -> None:
        """Store it; returns once it is durable. Raises `StoreError`, or why it cannot be stored: then it is not, and
        will not be. Cancelling the caller takes back what no writer has yet."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        if self._closing:
            raise StoreError("The store is closed.")
        size = unit.size
        if len(self._queue) >= limits.waiting or (self._queue and self._bytes + size > limits.waiting_bytes):
            raise StoreError(f"The store is overloaded: {len(self._queue)} writes are waiting.", reason="busy")
        waiting = _Waiting(unit, size, loop.create_future(), loop.time())
        self._queue.append(waiting)
        self._bytes += size
        self._wake()
        timer = loop.call_later(limits.seconds, self._expire, waiting)
        try:
            await waiting.future
        except asyncio.CancelledError:
            self._take_back(waiting)
            raise
        finally:
            timer.cancel()

    async def aclose(self) -> None:
        """Write what was accepted; nobody is waited for longer than its caller would wait."""
        self._closing = True
        while self._writers:
            await asyncio.wait(self._writers)

    def _wake(self) -> None:
        """A writer for what waits, if one is free. Between its last look at the queue and its end a writer does not
        await anything, so nobody who comes meanwhile is overlooked."""
        if self._queue and len(self._writers) < self._limits.writers:
            task = asyncio.get_running_loop().create_task(self._write_on())
            self._writers.add(task)

    async def _write_on(self) -> None:
        try:
            while group := self._take():
                self.groups[len(group)] += 1
                await self._write(group)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._writers.discard(task)

    def _take(self) -> list[_Waiting[U]]:
        """What goes together next. Of two with one id the second goes later: it is told that the id is taken."""
        group: list[_Waiting[U]] = []
        later: list[_Waiting[U]] = []
        ids: set[str] = set()
        size = 0
        while self._queue and len(group) < self._limits.group:
            if group and size + self._queue[0].size > self._limits.group_bytes:
                break
            waiting = self._queue.popleft()
            if waiting.unit.id in ids:
                later.append(waiting)
                continue
            ids.add(waiting.unit.id)
            size += waiting.size
            waiting.begun = True
            group.append(waiting)
        self._queue.extendleft(reversed(later))
        self._bytes -= size
        return group

    def _expire(self, waiting: _Waiting[U]) -> None:
        if self._take_back(waiting) and not waiting.future.done():
            message = f"Writing did not begin within {self._limits.seconds:g} seconds ('timeouts.save')."
            waiting.future.set_exception(StoreError(message, reason="slow", setting="timeouts.save"))

    def _take_back(self, waiting: _Waiting[U]) -> bool:
        if waiting.begun or waiting not in self._queue:
            return False
        self._queue.remove(waiting)
        self._bytes -= waiting.size
        return True

    async def _write(self, group: list[_Waiting[U]]) -> None:
        try:
            await self._settle(group)
        except Exception as error:
            # Nothing may stay unanswered; what comes here is a mistake of this program's.
            _log.error("group_failed", writes=len(group), exc_info=True)
            for waiting in group:
                self._fail(waiting, StoreError(f"Writing failed: {type(error).__name__}."))

    async def _settle(self, group: list[_Waiting[U]]) -> None:
        """Write the group; each of it is answered by the end."""
        left = group
        pause = _FIRST_PAUSE
        lost = 0
        while left := [waiting for waiting in left if not waiting.future.done() or waiting.unsure]:
            try:
                if any(waiting.unsure for waiting in left):
                    left = self._answer(left, await self._units.stored([waiting.unit for waiting in left]))
                    if not left:
                        return
                left = self._answer(left, await self._units.write([waiting.unit for waiting in left]))
                await self._refuse(left)
                return
            except StoreError as error:
                lost += error.reason == "unknown"
                if error.reason == "unknown":
                    for waiting in left:
                        waiting.unsure = True
                if len(left) > 1 and (error.reason not in _TRY_AGAIN or lost > 1):
                    # One of them may be what cannot be written, or what the server does not survive.
                    await asyncio.gather(*[self._settle([waiting]) for waiting in left])
                    return
                left = self._give_up(left, error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _answer(self, left: list[_Waiting[U]], stored: Collection[str]) -> list[_Waiting[U]]:
        """Those of them that are not stored; the others hear that they are."""
        ids = frozenset(stored)
        for waiting in left:
            if waiting.unit.id in ids:
                waiting.unsure = False
                if not waiting.future.done():
                    waiting.future.set_result(None)
        return [waiting for waiting in left if waiting.unit.id not in ids]

    async def _refuse(self, left: list[_Waiting[U]]) -> None:
        """The statement left them out. Of one whose first try was lost, that may be because it was carried out."""
        unsure = [waiting for waiting in left if waiting.unsure]
        if unsure:
            stored = await self._units.stored([waiting.unit for waiting in unsure])
            self._answer(unsure, stored)
            left = [waiting for waiting in left if waiting.unit.id not in frozenset(stored)]
        for waiting in left:
            self._fail(waiting, await self._units.explain(waiting.unit))

    def _give_up(self, left: list[_Waiting[U]], error: StoreError) -> list[_Waiting[U]]:
        """Those of them that may be tried again; the others hear that they have failed."""
        now = asyncio.get_running_loop().time()
        on = []
        for waiting in left:
            seconds = self._limits.settle_seconds if waiting.unsure else self._limits.seconds
            if error.reason in _TRY_AGAIN and now - waiting.entered < seconds:
                on.append(waiting)
            elif not waiting.unsure:
                self._fail(waiting, error.again())
            else:
                limit = f"{self._limits.settle_seconds:g} seconds ('timeouts.settle')"
                message = f"PostgreSQL did not say within {limit} whether it has written; if it has, that is undone."
                self._fail(waiting, StoreError(message, reason="unknown", setting="timeouts.settle", cause=error))
        return on

    def _fail(self, waiting: _Waiting[U], error: Exception) -> None:
        if waiting.unsure:
            # Refused now, but a lost statement of before may be carried out later.
            waiting.unsure = False
            self._units.withdraw(waiting.unit)
        if not waiting.future.done():
            waiting.future.set_exception(error)
