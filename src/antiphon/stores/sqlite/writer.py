"""The only writer of a SQLite database in this process: a thread with group commit.

Lives here: the queue of units, the transaction they share, how long units are waited for, and how results travel back
to the event loop. Not here: how the steps of units are run (`units.py`), table names or SQL of any store, reading
(`readers.py`).

A *unit* is a list of steps that happen all or not at all. The thread takes every unit that is waiting, runs all
of them in one transaction, and commits once, so that the price of `synchronous=FULL` (one flush to disk) is shared by
all of them. No transaction is ever held across an `await`.

Nearly always all of them succeed, so there is nothing to undo one of them with: a savepoint for each would cost a third
of what the statements do. When one fails the whole transaction is rolled back and run once more, now with a savepoint
around each unit, so that it is known which one it is, and that alone is undone.

**One truth per unit.** A caller that gives up takes its unit back, until the moment at which the thread begins to
commit: the two agree on that under one lock. So only a commit that the disk itself holds up can be late. Its outcome is
waited for, longer; a caller that is told `unknown` in the end has its unit undone (`undo`) by the transaction that
follows the late commit, before anything else is written here.

Invariant: a unit's future succeeds only after the commit that holds the unit, into files that are still in their
places; a unit that fails is undone alone and its neighbours stand; when the commit itself fails, every unit of the
group fails. Each accepted unit is answered exactly once, also while closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import structlog

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import LOCK_SECONDS, Place, locked, place_of, store_error, wait_for_lock
from antiphon.stores.sqlite.statements import Step
from antiphon.stores.sqlite.units import (
    Answer,
    Deadlines,
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


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """`queued` units may wait (one more is refused at once), `group` of them share a commit at most.

    `lock_seconds`: how long to wait for another process's write lock. A unit whose commit has not begun after `seconds`
    is taken back; one whose commit has begun is waited for `settle_seconds` in all.
    """

    queued: int = 4096
    group: int = 256
    lock_seconds: float = LOCK_SECONDS
    seconds: float = 10.0
    settle_seconds: float = 30.0


def writer_limits(timeouts: TimeoutSettings) -> WriterLimits:
    """The limits of a writer that waits for the disk for so long."""
    return WriterLimits(seconds=timeouts.save, settle_seconds=max(timeouts.save, timeouts.settle))


class FullDisk:
    """Whether a disk is full: until something is added again, or there is clearly more room than there was."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.room_when_full = 0
        self.error: StoreError | None = None

    def note(self, group: Sequence[Unit], error: StoreError | None) -> None:
        """A group of units has ended, with this error of its own."""
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
    """Runs units in a thread of its own; `run` may be called from any event loop of the process."""

    def __init__(
        self,
        where: Path | Place,
        prepare: Callable[[sqlite3.Connection], None],
        limits: WriterLimits = WriterLimits(),
    ) -> None:
        """`prepare` gets the new connection before the first unit, for example to migrate the schema."""
        self.place = place_of(where)
        self._prepare = prepare
        self.limits = limits
        self._lock = threading.Lock()
        self._waiting: deque[Unit] = deque()
        self._released = False
        self._news: SimpleQueue[None] = SimpleQueue()
        """Something has come whenever units are released, and at the end."""
        self._idle = False
        self._deadlines: dict[asyncio.AbstractEventLoop, Deadlines] = {}
        self._closing = False
        self._lost = False
        self.disk = FullDisk(self.place)
        self.groups: Counter[int] = Counter()
        """How many transactions there were of so many units; the thread alone counts."""
        self._ended = threading.Event()
        self._stop_watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._main, name="antiphon-sqlite-writer", daemon=True)
        self._started: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def full(self) -> StoreError | None:
        """The disk was full when something was to be written last; small writes may succeed all the same."""
        return self.disk.error

    @property
    def waiting(self) -> int:
        """Units that no transaction has yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Create and open the database in the thread; raises `StoreError` when that is not possible."""
        loop = asyncio.get_running_loop()
        self._started = (loop, loop.create_future())
        self._thread.start()
        try:
            await self._started[1]
        except BaseException:
            await self.aclose()
            raise

    async def run(self, steps: Sequence[Step], *, undo: Undo = ()) -> Counts:
        """Run the steps as one unit; returns once they are durable.

        Raises `StoreError`: then they had no effect, unless its reason is `unknown`. In that case `undo` is run should
        they take effect later (a function that makes it is called in the thread, and only then). Cancelling the caller
        takes the unit back if its commit has not begun.
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
            # Behind what the event loop does before it looks for new work: units that come of one turn are one group,
            # and the thread asks for the interpreter when the loop has none to do.
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
        """Let the thread take what came of this turn of the loop."""
        deadlines.releasing = False
        with self._lock:
            if self._released or not self._waiting:
                return
            self._released = True
        self._news.put(None)

    def _expire(self, unit: Unit) -> None:
        """The caller has waited long enough for the commit to begin, or else for its end."""
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
        """Take the unit back; False when its commit has begun."""
        with self._lock:
            unit.withdrawn = not unit.committing
            return unit.withdrawn

    def _forsake(self, unit: Unit) -> None:
        """The disk has not said for very long whether it has committed: the caller is told that."""
        with self._lock:
            if unit.over:
                return  # it has: the answer is on its way
            unit.forsaken = True
        limit = f"{self.limits.settle_seconds:g} seconds ('timeouts.settle')"
        then = "; if it does later, it is undone" if unit.undo else "; it may still take effect"
        message = f"A commit in {self.place} did not end within {limit}{then}."
        unit.future.set_exception(StoreError(message, reason="unknown", setting="timeouts.settle"))

    async def aclose(self) -> None:
        """Run what was accepted, then close the database and end the thread; a disk that stands still is not waited for
        longer than any caller would."""
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
            # Whoever waits for a write still is told when its time is over.
            return
        if self._thread.ident:
            self._thread.join()  # its last act was to wake us
        if (deadlines := self._deadlines.pop(loop, None)) is not None:
            deadlines.close()

    # Everything below runs in the thread.

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._open()
            if connection is not None:
                while group := self._take():
                    self.groups[len(group)] += 1
                    error = self._write(connection, group)
                    self.disk.note(group, error)
                    wrong = self._close_group(group, error)
                    self._answer(group, error)
                    if wrong:
                        self._undo(connection, wrong)
                    # Not until the next one comes: it may be large.
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
            connection.execute("SELECT count(*) FROM sqlite_schema")  # by now the log is open too
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
        """Everything that waits, once it is released, up to a group; empty when closing and nothing is left."""
        while True:
            with self._lock:
                if self._closing or (self._released and self._waiting):
                    some = min(len(self._waiting), self.limits.group)
                    group = [self._waiting.popleft() for _ in range(some)]
                    self._released = bool(self._waiting)
                    return group
            self._idle = True
            self._news.get()
            self._idle = False

    def _write(self, connection: sqlite3.Connection, group: list[Unit]) -> StoreError | None:
        """Run the group in one transaction; the error is the group's, a unit's own is noted on the unit."""
        try:
            apart = False
            while True:
                wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), self.limits.lock_seconds)
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
                # One was taken back after its statements had run: all others once more, without it.
                connection.execute("ROLLBACK")
            # Not before the statements as well: what they do to files that are not in their places is nobody's loss.
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
        """That the files are gone, whatever SQLite made of it, or else what it said."""
        try:
            self._look()
        except StoreError as lost:
            lost.__cause__ = cause
            return lost
        return store_error("Writing", self.place, cause)

    def _may_commit(self, ran: Sequence[Unit]) -> bool:
        """From here on none of them can be taken back; False when one was."""
        with self._lock:
            if any(unit.withdrawn for unit in ran):
                return False
            for unit in ran:
                unit.committing = True
            return True

    def _close_group(self, group: Sequence[Unit], error: StoreError | None) -> list[Unit]:
        """The outcome is known; what took effect although its caller is told, or was told, that it failed."""
        with self._lock:
            for unit in group:
                unit.over = True
            return [unit for unit in group if unit.committed and (unit.forsaken or error is not None)]

    def _undo(self, connection: sqlite3.Connection, wrong: Sequence[Unit]) -> None:
        undone = [unit for unit in wrong if unit.undo]
        try:
            with locked(connection, self.limits.lock_seconds):
                for unit in undone:
                    run_steps(connection, unit.undo() if callable(unit.undo) else unit.undo)
        except Exception as cause:
            _log.error(
                "late_commit_not_undone", writes=len(undone), error=str(store_error("Undoing", self.place, cause))
            )
            return
        _log.warning("late_commit_undone", database=str(self.place), writes=len(undone), kept=len(wrong) - len(undone))

    def _look(self) -> None:
        """Raises `StoreError` unless what is written will be found again; that this changed is said once."""
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
        """Run it so that it can be undone alone; what went wrong is noted on it."""
        unit.error = None
        connection.execute("SAVEPOINT unit")
        try:
            unit.result = run_steps(connection, unit.steps)
        except Exception as cause:
            if not connection.in_transaction:
                # A full disk or an I/O error ends the whole transaction, and the neighbours' work with it.
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
        # Only after a start that failed, or a bug that ended the thread; a proper close leaves nothing waiting.
        self._answer(left, StoreError("The store is closed."))
        for loop, stopped in watchers:
            _tell(loop, [(stopped, None, None)])


def _tell(loop: asyncio.AbstractEventLoop, answers: Sequence[Answer]) -> None:
    # The loop is closed only when its program ended without closing the store: nobody is left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, answers)
