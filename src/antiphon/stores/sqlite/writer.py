"""The one writer of a SQLite database in this process: a thread with group commit.

Lives here: the queue of units, the transaction they share, how long a caller waits, and how results travel back to the
event loop. Not here: table names or SQL of any store; reading (`readers.py`).

A *unit* is a list of statements that happen all or not at all. The thread takes every unit that is waiting, runs all
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
from typing import Any

import structlog

from antiphon.config.limits import TimeoutSettings
from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import (
    LOCK_SECONDS,
    store_error,
    wait_for_lock,
)
from antiphon.stores.sqlite.place import Place, place_of
from antiphon.stores.sqlite.statements import Counts, Statement, adds, run_statements

_log = structlog.get_logger(__name__)

Undo = Sequence[Statement] | Callable[[], Sequence[Statement]]

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


@dataclass(slots=True, eq=False)
class _Unit:
    """The flags are guarded by the writer's lock. `withdrawn`: must not take effect. `committing`: cannot be taken back
    any more. `committed`: took effect. `over`: its outcome is known. `forsaken`: its caller was told that nobody knows.
    """

    statements: Sequence[Statement]
    undo: Undo
    future: asyncio.Future[Counts]
    loop: asyncio.AbstractEventLoop
    timer: asyncio.TimerHandle | None = None
    result: Counts = ()
    error: StoreError | None = None
    withdrawn: bool = False
    committing: bool = False
    committed: bool = False
    over: bool = False
    forsaken: bool = False


class SqliteWriter:
    """Runs units in a thread of its own; `run` may be called from any event loop of the process."""

    def __init__(
        self,
        where: Path | Place,
        prepare: Callable[[sqlite3.Connection], None],
        limits: WriterLimits = WriterLimits(),
    ) -> None:
        """`prepare` gets the new connection before the first unit, for example to migrate the schema."""
        self._place = place_of(where)
        self._prepare = prepare
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[_Unit] = deque()
        self._released = False
        self._releasing: set[asyncio.AbstractEventLoop] = set()
        self._closing = False
        self._lost = False
        self._room_when_full = 0
        self.full: StoreError | None = None
        """The disk was full when something was to be written last; small writes may succeed all the same."""
        self.groups: Counter[int] = Counter()
        """How many transactions there were of so many units; the thread alone counts."""
        self._ended = threading.Event()
        self._stop_watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._main, name="antiphon-sqlite-writer", daemon=True)
        self._started: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

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

    async def run(self, statements: Sequence[Statement], *, undo: Undo = ()) -> Counts:
        """Run the statements as one unit; returns once they are durable.

        Raises `StoreError`: then they had no effect, unless its reason is `unknown`. In that case `undo` is run should
        they take effect later (a function that makes it is called in the thread, and only then). Cancelling the caller
        takes the unit back if its commit has not begun.
        """
        loop = asyncio.get_running_loop()
        unit = _Unit(statements, undo, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise StoreError("The store is closed.")
            if len(self._waiting) >= self._limits.queued:
                raise StoreError(f"The store is overloaded: {len(self._waiting)} writes are waiting.", reason="busy")
            self._waiting.append(unit)
        if loop not in self._releasing:
            self._releasing.add(loop)
            # Behind what the event loop does before it looks for new work: units that come of one turn are one group,
            # and the thread asks for the interpreter when the loop has none to do.
            loop.call_soon(self._release, loop)
        unit.timer = loop.call_later(self._limits.seconds, self._expire, unit)
        try:
            return await unit.future
        except asyncio.CancelledError:
            self._withdraw(unit)
            raise
        finally:
            unit.timer.cancel()

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the thread take what came of this turn of the loop."""
        self._releasing.discard(loop)
        with self._changed:
            if self._waiting:
                self._released = True
                self._changed.notify()

    def _expire(self, unit: _Unit) -> None:
        """The caller has waited long enough for the commit to begin."""
        limits = self._limits
        if unit.future.done():
            return
        if self._withdraw(unit):
            message = f"Writing to {self._place} did not begin within {limits.seconds:g} seconds ('timeouts.save')."
            unit.future.set_exception(StoreError(message, reason="slow", setting="timeouts.save"))
        else:
            left = max(0.0, limits.settle_seconds - limits.seconds)
            unit.timer = unit.loop.call_later(left, self._forsake, unit)

    def _withdraw(self, unit: _Unit) -> bool:
        """Take the unit back; False when its commit has begun."""
        with self._changed:
            unit.withdrawn = not unit.committing
            return unit.withdrawn

    def _forsake(self, unit: _Unit) -> None:
        """The disk has not said for very long whether it has committed: the caller is told that."""
        with self._changed:
            if unit.over:
                return  # it has: the answer is on its way
            unit.forsaken = True
        limit = f"{self._limits.settle_seconds:g} seconds ('timeouts.settle')"
        if not unit.future.done():
            then = "; if it does later, it is undone" if unit.undo else "; it may still take effect"
            message = f"A commit in {self._place} did not end within {limit}{then}."
            unit.future.set_exception(StoreError(message, reason="unknown", setting="timeouts.settle"))

    async def aclose(self) -> None:
        """Run what was accepted, then close the database and end the thread; a disk that stands still is not waited for
        longer than any caller would."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._closing = True
            self._changed.notify()
            if self._ended.is_set() or not self._thread.ident:
                stopped.set_result(None)
            else:
                self._stop_watchers.append((loop, stopped))
        await asyncio.wait({stopped}, timeout=self._limits.settle_seconds)
        if not stopped.done():
            stopped.cancel()
            _log.error("database_not_closed", database=str(self._place), seconds=self._limits.settle_seconds)
        elif self._thread.ident:
            self._thread.join()  # its last act was to wake us

    # Everything below runs in the thread.

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._open()
            if connection is not None:
                while group := self._take():
                    self.groups[len(group)] += 1
                    error = self._write(connection, group)
                    self._note_room(group, error)
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
            self._place.create()
            connection = self._place.connect()
            self._prepare(connection)
            connection.execute("SELECT count(*) FROM sqlite_schema")  # by now the log is open too
            self._place.remember()
        except Exception as cause:
            error = store_error("Opening", self._place, cause)
            error.__cause__ = cause if cause is not error else cause.__cause__
            if connection is not None:
                connection.close()
                connection = None
        loop, started = self._started
        _tell(loop, [(started, None, error)])
        return connection

    def _take(self) -> list[_Unit]:
        """Everything that waits, once it is released, up to a group; empty when closing and nothing is left."""
        with self._changed:
            while not (self._released and self._waiting) and not self._closing:
                self._changed.wait()
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.group))]
            self._released = bool(self._waiting)
            return group

    def _write(self, connection: sqlite3.Connection, group: list[_Unit]) -> StoreError | None:
        """Run the group in one transaction; the error is the group's, a unit's own is noted on the unit."""
        try:
            apart = False
            while True:
                wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), self._limits.lock_seconds)
                ran = [unit for unit in group if not unit.withdrawn]
                if apart:
                    for unit in ran:
                        self._run_apart(connection, unit)
                elif not _run_together(connection, ran):
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
            error = self._error(cause)
            error.__cause__ = cause if cause is not error else None
            return error
        return None

    def _error(self, cause: Exception) -> StoreError:
        """That the files are gone, whatever SQLite made of it, or else what it said."""
        try:
            self._look()
        except StoreError as lost:
            return lost
        return store_error("Writing", self._place, cause)

    def _note_room(self, group: Sequence[_Unit], error: StoreError | None) -> None:
        """Full until something is added again, or there is clearly more room than there was."""
        failures = [unit.error for unit in group if unit.error is not None]
        full = next((each for each in (error, *failures) if each is not None and each.reason == "full"), None)
        if full is not None:
            self.full, self._room_when_full = full, self._place.room()
        elif self.full is not None and error is None:
            added = any(adds(statement) for unit in group if unit.committed for statement in unit.statements)
            if added or self._place.room() > self._room_when_full + _CLEARLY_MORE:
                self.full = None

    def _may_commit(self, ran: Sequence[_Unit]) -> bool:
        """From here on none of them can be taken back; False when one was."""
        with self._changed:
            if any(unit.withdrawn for unit in ran):
                return False
            for unit in ran:
                unit.committing = True
        return True

    def _close_group(self, group: Sequence[_Unit], error: StoreError | None) -> list[_Unit]:
        """The outcome is known; what took effect although its caller is told, or was told, that it failed."""
        with self._changed:
            for unit in group:
                unit.over = True
            return [unit for unit in group if unit.committed and (unit.forsaken or error is not None)]

    def _undo(self, connection: sqlite3.Connection, wrong: Sequence[_Unit]) -> None:
        undone = [unit for unit in wrong if unit.undo]
        try:
            wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), self._limits.lock_seconds)
            for unit in undone:
                run_statements(connection, unit.undo() if callable(unit.undo) else unit.undo)
            connection.execute("COMMIT")
        except Exception as cause:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            _log.error(
                "late_commit_not_undone", writes=len(undone), error=str(store_error("Undoing", self._place, cause))
            )
            return
        _log.warning("late_commit_undone", database=str(self._place), writes=len(undone), kept=len(wrong) - len(undone))

    def _look(self) -> None:
        """Raises `StoreError` unless what is written will be found again; that this changed is said once."""
        try:
            self._place.check()
        except StoreError as error:
            if not self._lost:
                _log.error("database_lost", error=str(error))
            self._lost = True
            raise
        if self._lost:
            _log.warning("database_found_again", database=str(self._place))
        self._lost = False

    def _run_apart(self, connection: sqlite3.Connection, unit: _Unit) -> None:
        """Run it so that it can be undone alone; what went wrong is noted on it."""
        unit.error = None
        connection.execute("SAVEPOINT unit")
        try:
            unit.result = run_statements(connection, unit.statements)
        except Exception as cause:
            if not connection.in_transaction:
                # A full disk or an I/O error ends the whole transaction, and the neighbours' work with it.
                raise
            connection.execute("ROLLBACK TO unit")
            unit.error = store_error("Writing", self._place, cause)
            if unit.error is not cause:
                unit.error.__cause__ = cause
        connection.execute("RELEASE unit")

    def _answer(self, group: list[_Unit], error: StoreError | None) -> None:
        # One wake-up per event loop and group, not one per unit.
        by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        for unit in group:
            # An exception of its own for each caller: raising one adds to its traceback.
            failure = unit.error if error is None else _again(error)
            by_loop.setdefault(unit.loop, []).append((unit.future, unit.result, failure))
        for loop, answers in by_loop.items():
            _tell(loop, answers)

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            left = list(self._waiting)
            self._waiting.clear()
            self._ended.set()
            watchers, self._stop_watchers = self._stop_watchers, []
        # Only after a start that failed, or a bug that ended the thread; a proper close leaves nothing waiting.
        self._answer(left, StoreError("The store is closed."))
        for loop, stopped in watchers:
            _tell(loop, [(stopped, None, None)])


_Answer = tuple[asyncio.Future[Any], Any, StoreError | None]


def _run_together(connection: sqlite3.Connection, units: Sequence[_Unit]) -> bool:
    """Run them one after the other; False when one failed, and the transaction is to be rolled back."""
    try:
        for unit in units:
            unit.result = run_statements(connection, unit.statements)
    except Exception:
        if not connection.in_transaction:
            # A full disk or an I/O error has ended it: there is no use in another try.
            raise
        return False
    return True


def _again(error: StoreError) -> StoreError:
    copy = StoreError(*error.args, reason=error.reason)
    copy.__cause__ = error.__cause__
    return copy


def _settle(answers: Sequence[_Answer]) -> None:
    """In the event loop: hand results over; a future whose caller left is already done."""
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _tell(loop: asyncio.AbstractEventLoop, answers: Sequence[_Answer]) -> None:
    # The loop is closed only when its program ended without closing the store: nobody is left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, answers)
