"""Implements group commit for PostgreSQL. When a writer task is free, it writes the queued objects as one group, and
does not wait for more objects.

Lives here: the queue and its limits, the number of writers, and the recovery after a lost connection. Not here: the
statements (`responses.py`, `jobs.py`), connections.

An object to store, for example a finished response, is a "unit" in the code. One statement writes a group of objects.
The statement stores the objects that can be stored and returns their ids. If the statement fails because of a value of
one object, the writer writes the objects one by one.

If the outcome of a group is unknown, the writer opens a new connection and asks the database which objects are stored.
The writer writes the missing objects again. If the database then refuses an object, the writer asks again whether the
object is stored, because the lost statement may have stored it meanwhile. Writing an object again is safe, because
storing an object is idempotent. If the outcome of an object is still unknown at the deadline, the writer withdraws the
object. A withdrawal deletes the object, and prevents the lost statement from storing the object later.

Invariants: each accepted object gets exactly one result, in bounded time, also while the store closes. Success means
that the object is stored. An error means that the object is not stored and will not be stored. No object waits while a
writer is free.
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
    """Writes, queries and withdraws objects of one type, for example finished responses. The write queue calls these
    methods."""

    async def write(self, group: Sequence[U_contra]) -> Collection[str]:
        """Store the objects that can be stored, and return their ids. Raises `StoreError` when no object is stored. If
        the error's reason is `unknown`, the objects may be stored."""

    async def stored(self, group: Sequence[U_contra]) -> Collection[str]:
        """Return the ids of those objects that are stored. Raises `StoreError`."""

    async def explain(self, unit: U_contra) -> Exception:
        """Return the reason why `write` did not store the object. Raises `StoreError` when the query for the reason
        fails."""

    def withdraw(self, unit: U_contra) -> None:
        """Delete the object if it is stored, and prevent a lost statement from storing the object later."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of a write queue. `waiting`, `waiting_bytes`: the most objects, and the most bytes, in the queue. A
    full queue refuses further objects immediately. `group`, `group_bytes`: the most objects, and the most bytes, of one
    group. `writers`: the number of groups that are written concurrently.

    The write of an object fails if it has not succeeded after `seconds`. If the outcome of an object is unknown, the
    writer asks the database for the outcome until `settle_seconds` have passed.
    """

    waiting: int = 4096
    waiting_bytes: int = 256 << 20
    group: int = 64
    group_bytes: int = 1 << 20
    writers: int = 3
    seconds: float = 10.0
    settle_seconds: float = 30.0


def group_limits(timeouts: TimeoutSettings, *, connections: int, group: int = 64) -> GroupLimits:
    """Return the limits of a write queue that uses a pool of `connections` connections. The writers use all connections
    except one, which other statements need."""
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
    """Whether a statement with an unknown outcome may have stored the object."""


class WriteQueue(Protocol):
    """The interface of a write queue for objects of any type."""

    groups: Counter[int]
    """The number of written groups, by the number of objects in a group."""

    @property
    def waiting(self) -> int:
        """The number of objects in the queue, whose write has not begun."""

    async def aclose(self) -> None:
        """Wait until all accepted objects are written, or until their deadlines."""


class GroupCommit(Generic[U]):
    """The write queue for objects of one type."""

    def __init__(self, units: Units[U], limits: GroupLimits | None = None) -> None:
        self._units = units
        self._limits = limits or GroupLimits()
        self._queue: deque[_Waiting[U]] = deque()
        self._bytes = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._closing = False
        self.groups: Counter[int] = Counter()
        """The number of written groups, by the number of objects in a group."""

    @property
    def waiting(self) -> int:
        """The number of objects in the queue, whose write has not begun."""
        return len(self._queue)

    async def run(self, unit: U) -> None:
        """Store the object and return when the object is durable. After an error, the object is not stored and will not
        be stored. Raises `StoreError`, or the error of `Units.explain` when the database refused the object.

        If the caller is cancelled, the queue drops the object, unless a writer has already taken the object."""
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
        """Wait until the writers have written all accepted objects, or until the objects' deadlines."""
        self._closing = True
        while self._writers:
            await asyncio.wait(self._writers)

    def _wake(self) -> None:
        """Start a writer task if the queue has objects and fewer than `writers` tasks run. A running task writes
        objects until the queue is empty. The task does not await between its last look at the queue and its end, so it
        misses no new object."""
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
        """Take the next group from the queue. If two objects have the same id, the second object stays in the queue for
        a later group. In the later group the second object fails, because its id already exists."""
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
            # An unexpected error is a bug, but every unit must still get a result.
            _log.error("group_failed", writes=len(group), exc_info=True)
            for waiting in group:
                self._fail(waiting, StoreError(f"Writing failed: {type(error).__name__}."))

    async def _settle(self, group: list[_Waiting[U]]) -> None:
        """Write the group, with retries, until each object has a result."""
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
                    # Write the units one by one, because one unit may have an invalid value or crash the server.
                    await asyncio.gather(*[self._settle([waiting]) for waiting in left])
                    return
                left = self._give_up(left, error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _answer(self, left: list[_Waiting[U]], stored: Collection[str]) -> list[_Waiting[U]]:
        """Report success to the callers of the stored objects. Returns the objects that are not stored."""
        ids = frozenset(stored)
        for waiting in left:
            if waiting.unit.id in ids:
                waiting.unsure = False
                if not waiting.future.done():
                    waiting.future.set_result(None)
        return [waiting for waiting in left if waiting.unit.id not in ids]

    async def _refuse(self, left: list[_Waiting[U]]) -> None:
        """Report a failure to the callers of the objects that the statement did not store. If a lost earlier statement
        may have stored an object, ask the database first whether the object is stored."""
        unsure = [waiting for waiting in left if waiting.unsure]
        if unsure:
            stored = await self._units.stored([waiting.unit for waiting in unsure])
            self._answer(unsure, stored)
            left = [waiting for waiting in left if waiting.unit.id not in frozenset(stored)]
        for waiting in left:
            self._fail(waiting, await self._units.explain(waiting.unit))

    def _give_up(self, left: list[_Waiting[U]], error: StoreError) -> list[_Waiting[U]]:
        """Report a failure to the callers of the objects whose deadline has passed, or whose error allows no retry.
        Returns the objects to retry."""
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
                message = (
                    f"PostgreSQL did not confirm the write within {limit}. "
                    "If the write took effect, Antiphon undoes it."
                )
                self._fail(waiting, StoreError(message, reason="unknown", setting="timeouts.settle", cause=error))
        return on

    def _fail(self, waiting: _Waiting[U], error: Exception) -> None:
        if waiting.unsure:
            # An earlier statement with an unknown outcome may still store the unit.
            waiting.unsure = False
            self._units.withdraw(waiting.unit)
        if not waiting.future.done():
            waiting.future.set_exception(error)
