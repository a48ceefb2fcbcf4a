"""Group commit for PostgreSQL: a free writer takes all queued writes at once, without delay.

Lives here: the queue and its limits, the number of writers, and the recovery after a lost connection. Not here: the
statements (`turns.py`, `jobs.py`), connections.

A group is one statement, which stores the members that it can and returns their ids. If a value of one member fails,
the members are written one by one. If a group's outcome is unknown, a query on a new connection looks for each member,
and missing ones are written again. If the database refuses one then, another query follows, because the lost statement
may have run meanwhile. Storing is idempotent, so all this is safe. Members with an outcome still unknown at the
deadline are withdrawn.

Invariants: each accepted unit gets exactly one result, in bounded time, also during closing. Success means that it is
stored; an error means that it is not and will not be. No unit waits while a writer is free.
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
    """How one kind of unit is stored."""

    async def write(self, group: Sequence[U_contra]) -> Collection[str]:
        """Store the units that can be stored, and return their ids. Raises `StoreError`: none is stored, or (`unknown`)
        the outcome is unknown."""

    async def stored(self, group: Sequence[U_contra]) -> Collection[str]:
        """The ids of those units that are stored. Raises `StoreError`."""

    async def explain(self, unit: U_contra) -> Exception:
        """The reason why the unit was left out. Raises `StoreError` when the query fails."""

    def withdraw(self, unit: U_contra) -> None:
        """Prevent that the unit is stored, even if it is stored now or a lost statement stores it later."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """`waiting`, `waiting_bytes`: the limits of the queue; more is refused at once. `group`, `group_bytes`: the limits
    of one group. `writers`: the number of groups written at once.

    A unit fails when its write has not begun after `seconds`, or cannot succeed for so long. A unit with an unknown
    outcome is looked up until `settle_seconds` have passed.
    """

    waiting: int = 4096
    waiting_bytes: int = 256 << 20
    group: int = 64
    group_bytes: int = 1 << 20
    writers: int = 3
    seconds: float = 10.0
    settle_seconds: float = 30.0


def group_limits(timeouts: TimeoutSettings, *, connections: int, group: int = 64) -> GroupLimits:
    """The limits for a pool of `connections`, of which one is reserved for other statements."""
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
    """Whether it may be stored without a confirmation."""


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
        """The number of groups by their number of units."""

    @property
    def waiting(self) -> int:
        """The number of units that no writer has taken yet."""
        return len(self._queue)

    async def run(self, unit: U) -> None:
        """Store the unit; returns when it is durable. Raises `StoreError` or the reason of the refusal: then it is not
        stored and will not be. Cancelling the caller withdraws a unit that no writer has taken yet."""
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
        """Write the accepted units; waits no longer than their callers would."""
        self._closing = True
        while self._writers:
            await asyncio.wait(self._writers)

    def _wake(self) -> None:
        """Start a writer for the queue, if one is free. A writer does not await between its last check of the queue and
        its end, so no new unit is overlooked."""
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
        """The next group. Of two units with one id, the second goes into a later group: it then gets the error that the
        id exists."""
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
            # Every unit must get a result; an error here is a bug.
            _log.error("group_failed", writes=len(group), exc_info=True)
            for waiting in group:
                self._fail(waiting, StoreError(f"Writing failed: {type(error).__name__}."))

    async def _settle(self, group: list[_Waiting[U]]) -> None:
        """Write the group; each unit has a result by the end."""
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
                    # One unit may be unwritable, or may crash the server.
                    await asyncio.gather(*[self._settle([waiting]) for waiting in left])
                    return
                left = self._give_up(left, error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _answer(self, left: list[_Waiting[U]], stored: Collection[str]) -> list[_Waiting[U]]:
        """Give the stored units their success. Returns the others."""
        ids = frozenset(stored)
        for waiting in left:
            if waiting.unit.id in ids:
                waiting.unsure = False
                if not waiting.future.done():
                    waiting.future.set_result(None)
        return [waiting for waiting in left if waiting.unit.id not in ids]

    async def _refuse(self, left: list[_Waiting[U]]) -> None:
        """The statement left these out. If an earlier attempt was lost, that attempt may have stored them."""
        unsure = [waiting for waiting in left if waiting.unsure]
        if unsure:
            stored = await self._units.stored([waiting.unit for waiting in unsure])
            self._answer(unsure, stored)
            left = [waiting for waiting in left if waiting.unit.id not in frozenset(stored)]
        for waiting in left:
            self._fail(waiting, await self._units.explain(waiting.unit))

    def _give_up(self, left: list[_Waiting[U]], error: StoreError) -> list[_Waiting[U]]:
        """Fail the units that may not be retried. Returns the others."""
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
            # Refused now, but an earlier lost statement may still run.
            waiting.unsure = False
            self._units.withdraw(waiting.unit)
        if not waiting.future.done():
            waiting.future.set_exception(error)
