"""Runs all of this process's writes to a SQLite database in one thread, with group commit.

Lives here: the queue of units, the shared transaction of a group of units, timeouts, and the return of results to the
event loop. Not here: running the steps of units (`units.py`), table names or SQL of any store, reading (`readers.py`).

A *unit* is a list of statements that take effect together or not at all. The writer's thread takes all waiting units,
runs them in one transaction, and commits once. SQLite flushes to disk at every commit (`synchronous=FULL`), so the
units of one transaction share one flush. No transaction is ever open across an `await`.

The first run of a group has no savepoints, because units rarely fail and savepoints would cost a third of the
statements' time. When a unit fails, the thread rolls the transaction back and runs the group again with a savepoint
around each unit. With savepoints, SQLite rolls back only the failing unit.

Several processes may write to one file. SQLite has no queue for the write lock: a waiting process polls. On a slow
disk, a process that commits continuously holds the lock almost always. A waiting process could miss every free moment
until its timeout. So after a long transaction, the thread pauses before the next one (`pause_after`).

A caller that times out withdraws its unit if the thread has not begun to commit. One lock serializes the withdrawal of
a unit and the beginning of its commit. So a caller waits longer than the timeout only if the disk delays a commit that
has begun. In this case the caller waits up to `settle_seconds`. If the commit has not ended after `settle_seconds`, the
caller gets an error with the reason `unknown`. If the commit succeeds later, the next transaction runs the unit's
`undo` before any other write.

Invariants: a unit's future succeeds only after its commit, and only if no database file was moved or replaced. A
failing unit is rolled back without the other units of its group. When the commit itself fails, every unit of the group
fails. Each accepted unit gets exactly one result, also while the writer closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import structlog

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import LOCK_SECONDS, Place, place_of, store_error, wait_for_lock, write_lock
from antiphon.stores.sqlite.units import (
    Answer,
    Deadlines,
    Step,
    Undo,
    Unit,
    adds,
    answers_of,
    run_steps,
    run_together,
    settle,
)
from antiphon.stores.tables import Counts

_log = structlog.get_logger(__name__)

_CLEARLY_MORE = 1 << 18
_SLOW_SECONDS = 0.1


def pause_after(held: float) -> float:
    """Return the seconds for which the thread leaves the write lock free after it held the lock for `held` seconds.

    The result is a tenth of `held`, at most 0.005 (5 ms), because polling processes try every 2 ms. If `held` is below
    0.01 (10 ms), the result is 0. Short transactions end so often that a polling process soon finds the lock free.

    Example: `pause_after(0.03)` is 0.003.
    """
    return min(held / 10, 0.005) if held >= 0.01 else 0.0


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """The queue size and the timeouts of a writer. `queued`: the maximum number of waiting units. If the queue is full,
    `run` rejects a unit immediately. `group`: the maximum number of units per commit.

    `lock_seconds`: the timeout for getting the write lock from another process. `seconds`: the maximum time from the
    call of `run` until the unit's commit begins. `settle_seconds`: the maximum time from the call of `run` until the
    commit ends.
    """

    queued: int = 4096
    group: int = 256
    lock_seconds: float = LOCK_SECONDS
    seconds: float = 10.0
    settle_seconds: float = 30.0


def writer_limits(timeouts: TimeoutSettings) -> WriterLimits:
    """Derive a writer's limits from the `timeouts` settings."""
    return WriterLimits(seconds=timeouts.save, settle_seconds=max(timeouts.save, timeouts.settle))


class FullDisk:
    """Tracks whether the disk is full. After a write failed because the disk was full, the disk counts as full until an
    insert succeeds. It also stops counting as full when over 256 KiB more are free than at the failure."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.room_when_full = 0
        self.error: StoreError | None = None

    def note(self, group: Sequence[Unit], error: StoreError | None) -> None:
        """Record the outcome of a group of units. `error`: the error of the whole group, or None."""
        if error is None and self.error is None and all(unit.error is None for unit in group):
            return
        failures = [unit.error for unit in group if unit.error is not None]
        full = next((each for each in (error, *failures) if each is not None and each.reason == "full"), None)
        if full is not None:
            self.error, self.room_when_full = full, self._place.room()
        elif self.error is not None and error is None:
            added = any(adds(unit) for unit in group if unit.committed)
            if added or self._place.room() > self.room_when_full + _CLEARLY_MORE:
                self.error = None


class SqliteWriter:
    """Runs units of writes in a separate thread. Coroutines of any event loop of the process may call `run`."""

    def __init__(
        self,
        where: Path | Place,
        prepare: Callable[[sqlite3.Connection], None],
        limits: WriterLimits = WriterLimits(),
    ) -> None:
        """`prepare`: a function that the thread calls with the new connection before the first unit, for example to
        migrate the schema."""
        self.place = place_of(where)
        self._prepare = prepare
        self.limits = limits
        self._lock = threading.Lock()
        self._waiting: deque[Unit] = deque()
        self._released = False
        self._news: SimpleQueue[None] = SimpleQueue()
        """An element in this queue wakes the writer's thread. `_release` and `aclose` put elements into the queue."""
        self._deadlines: dict[asyncio.AbstractEventLoop, Deadlines] = {}
        self._closing = False
        self._lost = False
        self._locked_at = 0.0
        self._group_began: float | None = None
        self.disk = FullDisk(self.place)
        self.groups: Counter[int] = Counter()
        """A histogram: the number of transactions by their number of units. Only the writer's thread changes the
        counter."""
        self._ended = threading.Event()
        self._stop_watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._main, name="antiphon-sqlite-writer", daemon=True)
        self._started: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def full(self) -> StoreError | None:
        """The error of a write that failed because the disk is full, or None. On a full disk, small writes may still
        succeed."""
        return self.disk.error

    @property
    def waiting(self) -> int:
        """The number of queued units that are not part of a transaction yet."""
        return len(self._waiting)

    @property
    def is_slow(self) -> bool:
        """Whether the current transaction takes longer than a transaction on a fast disk. Then the disk may hang."""
        began = self._group_began
        return began is not None and time.monotonic() - began > _SLOW_SECONDS

    async def start(self) -> None:
        """Start the thread, which creates and opens the database. Raises `StoreError`."""
        loop = asyncio.get_running_loop()
        self._started = (loop, loop.create_future())
        self._thread.start()
        try:
            await self._started[1]
        except BaseException:
            await self.aclose()
            raise

    async def run(self, steps: Sequence[Step], *, undo: Undo = ()) -> Counts:
        """Run the steps as one unit of writes. Returns the number of changed rows of each step when the commit is
        durable.

        If the call raises `StoreError`, the steps had no effect, unless the reason is `unknown`. After an `unknown`
        error, the thread runs the steps `undo` if the commit succeeds later. If `undo` is a function, the thread calls
        the function only if the commit succeeds after the `unknown` error. Cancelling the caller withdraws the unit if
        its commit has not begun.
        """
        loop = asyncio.get_running_loop()
        deadlines = self._deadlines.get(loop)
        if deadlines is None:
            deadlines = self._deadlines[loop] = Deadlines(loop, self._expire)
        unit = Unit(steps, undo, loop.create_future(), loop)
        with self._lock:
            if self._closing:
                raise StoreError("The store is closed.")
            if len(self._waiting) >= self.limits.queued:
                raise StoreError(f"The store is overloaded: {len(self._waiting)} writes are waiting.", reason="busy")
            self._waiting.append(unit)
        if not deadlines.releasing:
            deadlines.releasing = True
            # Wake the thread only after the other callbacks of this loop iteration. So the units of one iteration form
            # one group, and the thread takes the GIL when the loop is idle.
            loop.call_soon(self._release, deadlines)
        deadlines.wait(unit, self.limits.seconds)
        try:
            return await unit.future
        except asyncio.CancelledError:
            self._withdraw(unit)
            raise
        finally:
            deadlines.forget(unit)

    def _release(self, deadlines: Deadlines) -> None:
        """Wake the thread for the units that callbacks added to the queue in this iteration of the event loop."""
        deadlines.releasing = False
        with self._lock:
            if self._released or not self._waiting:
                return
            self._released = True
        self._news.put(None)

    def _expire(self, unit: Unit) -> None:
        """Handle a passed deadline of a unit. After the first deadline (`seconds`) withdraw the unit, or wait for its
        commit until the second deadline (`settle_seconds`)."""
        limits = self.limits
        if unit.future.done():
            return
        if unit.late:
            self._forsake(unit)
        elif self._withdraw(unit):
            message = f"Writing to {self.place} did not begin within {limits.seconds:g} seconds ('timeouts.save')."
            unit.future.set_exception(StoreError(message, reason="slow", setting="timeouts.save"))
        else:
            unit.late = True
            self._deadlines[unit.loop].wait(unit, max(0.0, limits.settle_seconds - limits.seconds))

    def _withdraw(self, unit: Unit) -> bool:
        """Withdraw the unit. Returns False when the commit of the unit has already begun."""
        with self._lock:
            unit.withdrawn = not unit.committing
            return unit.withdrawn

    def _forsake(self, unit: Unit) -> None:
        """Give the caller an error with the reason `unknown`, because the commit has not ended within
        `settle_seconds`."""
        with self._lock:
            if unit.over:
                return  # the commit has ended, and the result is on its way to the caller
            unit.forsaken = True
        limit = f"{self.limits.settle_seconds:g} seconds ('timeouts.settle')"
        then = (
            "; if the commit succeeds later, Antiphon undoes it" if unit.undo else "; the commit may still take effect"
        )
        message = f"A commit in {self.place} did not end within {limit}{then}."
        unit.future.set_exception(StoreError(message, reason="unknown", setting="timeouts.settle"))

    async def aclose(self) -> None:
        """Run the accepted units, then close the database and end the thread. Waits for a hanging disk at most
        `settle_seconds`."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._closing = True
            if self._ended.is_set() or not self._thread.ident:
                stopped.set_result(None)
            else:
                self._stop_watchers.append((loop, stopped))
        self._news.put(None)
        await asyncio.wait({stopped}, timeout=self.limits.settle_seconds)
        if not stopped.done():
            stopped.cancel()
            _log.error("database_not_closed", database=str(self.place), seconds=self.limits.settle_seconds)
            # Callers that still wait for a write get an error after their timeout.
            return
        if self._thread.ident:
            self._thread.join()  # the thread ends right after it set `stopped`
        if (deadlines := self._deadlines.pop(loop, None)) is not None:
            deadlines.close()

    # The methods below run in the thread.

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._open()
            if connection is not None:
                while group := self._take():
                    self.groups[len(group)] += 1
                    self._group_began = time.monotonic()
                    error = self._write(connection, group)
                    self._group_began = None
                    pause = pause_after(time.monotonic() - self._locked_at)
                    self.disk.note(group, error)
                    wrong = self._close_group(group, error)
                    self._answer(group, error)
                    if wrong:
                        self._undo(connection, wrong)
                    if pause:
                        time.sleep(pause)
                    # Free the group's memory before waiting for the next group.
                    del group, wrong
        finally:
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            self._end()

    def _open(self) -> sqlite3.Connection | None:
        assert self._started is not None
        connection: sqlite3.Connection | None = None
        error: StoreError | None = None
        try:
            self.place.create()
            connection = self.place.connect()
            self._prepare(connection)
            connection.execute("SELECT count(*) FROM sqlite_schema")  # opens the `-wal` file, for `remember`
            self.place.remember()
        except Exception as cause:
            error = store_error("Opening", self.place, cause)
            if connection is not None:
                connection.close()
                connection = None
        loop, started = self._started
        _tell(loop, [(started, None, error)])
        return connection

    def _take(self) -> list[Unit]:
        """Wait for units that `_release` has announced, and take at most `group` of them from the queue. Returns an
        empty list when the writer closes and the queue is empty."""
        while True:
            with self._lock:
                if self._closing or (self._released and self._waiting):
                    some = min(len(self._waiting), self.limits.group)
                    group = [self._waiting.popleft() for _ in range(some)]
                    self._released = bool(self._waiting)
                    return group
            self._news.get()

    def _write(self, connection: sqlite3.Connection, group: list[Unit]) -> StoreError | None:
        """Run the group in one transaction. Returns the error of the whole group, or None. The error of a single unit
        is stored in `unit.error`."""
        try:
            apart = False
            while True:
                wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), self.limits.lock_seconds)
                self._locked_at = time.monotonic()
                ran = [unit for unit in group if not unit.withdrawn]
                if apart:
                    for unit in ran:
                        self._run_apart(connection, unit)
                elif not run_together(connection, ran):
                    apart = True
                    connection.execute("ROLLBACK")
                    continue
                if self._may_commit(ran):
                    break
                # One unit was withdrawn after its statements ran: roll back, and run the group again without this unit.
                connection.execute("ROLLBACK")
            # Check the files only before the commit, because uncommitted statements on a replaced file cause no loss of
            # data.
            self._look()
            connection.execute("COMMIT")
            for unit in ran:
                unit.committed = unit.error is None
            self._look()
        except Exception as cause:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            return self._error(cause)
        return None

    def _error(self, cause: Exception) -> StoreError:
        """Return the error of `place.check` if a database file is missing or replaced, else the error of SQLite."""
        try:
            self._look()
        except StoreError as lost:
            lost.__cause__ = cause
            return lost
        return store_error("Writing", self.place, cause)

    def _may_commit(self, ran: Sequence[Unit]) -> bool:
        """Mark the units as committing, so that no caller can withdraw them. Returns False when a caller has already
        withdrawn a unit."""
        with self._lock:
            if any(unit.withdrawn for unit in ran):
                return False
            for unit in ran:
                unit.committing = True
            return True

    def _close_group(self, group: Sequence[Unit], error: StoreError | None) -> list[Unit]:
        """Mark the units' transactions as ended (`over`). Returns the committed units whose callers get an error.
        `_undo` must revert these units."""
        with self._lock:
            for unit in group:
                unit.over = True
            return [unit for unit in group if unit.committed and (unit.forsaken or error is not None)]

    def _undo(self, connection: sqlite3.Connection, wrong: Sequence[Unit]) -> None:
        undone = [unit for unit in wrong if unit.undo]
        try:
            with write_lock(connection, self.limits.lock_seconds):
                for unit in undone:
                    run_steps(connection, unit.undo() if callable(unit.undo) else unit.undo)
        except Exception as cause:
            _log.error(
                "late_commit_not_undone", writes=len(undone), error=str(store_error("Undoing", self.place, cause))
            )
            return
        _log.warning("late_commit_undone", database=str(self.place), writes=len(undone), kept=len(wrong) - len(undone))

    def _look(self) -> None:
        """Raise `StoreError` if a database file was deleted, moved or replaced. Logs an error when the files are first
        missing, and a warning when the files are back."""
        try:
            self.place.check()
        except StoreError as error:
            if not self._lost:
                _log.error("database_lost", error=str(error))
            self._lost = True
            raise
        if self._lost:
            _log.warning("database_found_again", database=str(self.place))
        self._lost = False

    def _run_apart(self, connection: sqlite3.Connection, unit: Unit) -> None:
        """Run the unit in a savepoint. If the unit fails, roll back to the savepoint and set `unit.error`."""
        unit.error = None
        connection.execute("SAVEPOINT unit")
        try:
            unit.result = run_steps(connection, unit.steps)
        except Exception as cause:
            if not connection.in_transaction:
                # SQLite rolls back the whole transaction on a full disk or an I/O error, including the other units.
                raise
            connection.execute("ROLLBACK TO unit")
            unit.error = store_error("Writing", self.place, cause)
        connection.execute("RELEASE unit")

    def _answer(self, group: list[Unit], error: StoreError | None) -> None:
        for loop, answers in answers_of(group, error).items():
            _tell(loop, answers)

    def _end(self) -> None:
        with self._lock:
            self._closing = True
            left = list(self._waiting)
            self._waiting.clear()
            self._ended.set()
            watchers, self._stop_watchers = self._stop_watchers, []
        # Units are still in the queue only after a failed start or a bug that ended the thread, because `aclose` runs
        # all accepted units.
        self._answer(left, StoreError("The store is closed."))
        for loop, stopped in watchers:
            _tell(loop, [(stopped, None, None)])


def _tell(loop: asyncio.AbstractEventLoop, answers: Sequence[Answer]) -> None:
    # RuntimeError: the event loop is closed because the program ended without closing the store, so no caller waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, answers)
