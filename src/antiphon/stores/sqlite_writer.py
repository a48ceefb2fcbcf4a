"""The one writer of a SQLite database in this process: a thread with group commit.

Lives here: the queue of units, the transaction they share, and how results travel back to the event loop. Not
here: table names or SQL of any store; reading (`sqlite_readers.py`).

A *unit* is a list of statements that happen all or not at all. The thread takes every unit that is waiting, runs
each in a savepoint of one transaction, and commits once, so that the price of `synchronous=FULL` (one flush to
disk) is shared by all of them. No transaction is ever held across an `await`.

Invariant: a unit's future succeeds only after the commit that holds the unit; a unit that fails is undone alone
and its neighbours stand; when the commit itself fails, every unit of the group fails. Each accepted unit is
answered exactly once, also while closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antiphon.errors import StoreError
from antiphon.stores.sqlite_database import LOCK_SECONDS, connect_writer, create_file, store_error, wait_for_lock

__all__ = ["RowsMissing", "SqliteWriter", "Statement", "WriterLimits"]

Parameters = Mapping[str, Any] | Sequence[Any]
Counts = tuple[int, ...]
"""For each statement of a unit, how many rows it changed."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a unit. `many` runs it once per element of `parameters`.

    `rows`: how many rows it must change; any other number undoes the unit with `RowsMissing`.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None


class RowsMissing(StoreError):
    """A statement did not find the rows it must change; the unit was undone."""


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """`queued` units may wait (one more is refused at once), `group` of them share a commit at most.

    `lock_seconds`: how long to wait for another process's write lock.
    """

    queued: int = 4096
    group: int = 256
    lock_seconds: float = LOCK_SECONDS


@dataclass(slots=True, eq=False)
class _Unit:
    statements: Sequence[Statement]
    future: asyncio.Future[Counts]
    loop: asyncio.AbstractEventLoop
    result: Counts = ()
    error: StoreError | None = None
    withdrawn: bool = field(default=False)


class SqliteWriter:
    """Runs units in a thread of its own; `run` may be called from any event loop of the process."""

    def __init__(
        self,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        limits: WriterLimits = WriterLimits(),
    ) -> None:
        """`prepare` gets the new connection before the first unit, for example to migrate the schema."""
        self._path = path
        self._prepare = prepare
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[_Unit] = deque()
        self._closing = False
        self._ended = threading.Event()
        self._stop_watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._main, name="antiphon-sqlite-writer", daemon=True)
        self._start_error: StoreError | None = None
        self._started: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

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

    async def run(self, statements: Sequence[Statement]) -> Counts:
        """Run the statements as one unit; returns once they are durable.

        Cancelling the caller withdraws a unit that was not begun; one that was begun may still be committed.
        """
        loop = asyncio.get_running_loop()
        unit = _Unit(statements, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise StoreError("The store is closed.")
            if len(self._waiting) >= self._limits.queued:
                raise StoreError(f"The store is overloaded: {len(self._waiting)} writes are waiting.")
            self._waiting.append(unit)
            self._changed.notify()
        try:
            return await unit.future
        except asyncio.CancelledError:
            unit.withdrawn = True
            raise

    async def aclose(self) -> None:
        """Run what was accepted, then close the database and end the thread."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._closing = True
            self._changed.notify()
            if self._ended.is_set() or not self._thread.ident:
                stopped.set_result(None)
            else:
                self._stop_watchers.append((loop, stopped))
        await stopped
        if self._thread.ident:
            self._thread.join()  # its last act was to wake us

    # Everything below runs in the thread.

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._open()
            if connection is not None:
                while group := self._take():
                    self._answer(group, self._write(connection, group))
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
            create_file(self._path)
            connection = connect_writer(self._path)
            self._prepare(connection)
        except Exception as cause:
            error = store_error("Opening", self._path, cause)
            error.__cause__ = cause if cause is not error else cause.__cause__
            if connection is not None:
                connection.close()
                connection = None
        loop, started = self._started
        _tell(loop, [(started, None, error)])
        return connection

    def _take(self) -> list[_Unit]:
        """Everything that waits, up to a group; empty when closing and nothing is left."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.group))]

    def _write(self, connection: sqlite3.Connection, group: list[_Unit]) -> StoreError | None:
        """Run the group in one transaction; the error is the group's, a unit's own is noted on the unit."""
        try:
            wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), self._limits.lock_seconds)
            for unit in group:
                if not unit.withdrawn:
                    self._run_unit(connection, unit)
            connection.execute("COMMIT")
        except Exception as cause:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            error = store_error("Writing", self._path, cause)
            error.__cause__ = cause
            return error
        return None

    def _run_unit(self, connection: sqlite3.Connection, unit: _Unit) -> None:
        connection.execute("SAVEPOINT unit")
        try:
            unit.result = tuple([_run_statement(connection, statement) for statement in unit.statements])
        except Exception as cause:
            if not connection.in_transaction:
                # A full disk or an I/O error ends the whole transaction, and the neighbours' work with it.
                raise
            connection.execute("ROLLBACK TO unit")
            unit.error = store_error("Writing", self._path, cause)
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


def _run_statement(connection: sqlite3.Connection, statement: Statement) -> int:
    if statement.many:
        changed = connection.executemany(statement.sql, statement.parameters).rowcount if statement.parameters else 0
    else:
        changed = connection.execute(statement.sql, statement.parameters).rowcount
    if statement.rows is not None and changed != statement.rows:
        raise RowsMissing("A row that must be there is missing.")
    return changed


def _again(error: StoreError) -> StoreError:
    copy = StoreError(*error.args)
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
