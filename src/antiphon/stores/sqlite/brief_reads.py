"""Answers brief queries on a SQLite database in the thread of the event loop.

Lives here: one read-only connection, and the conditions under which the event loop may use it. Not here: queries that
may read many rows (`readers.py`), writing (`writer.py`), the limits of a brief query (`../responses.py`).

A query in another thread needs two changes of thread. For the history of one response, these take seven times as long
as the query itself. So the caller first tries a query here that reads few rows by their keys. If this object gives no
answer, the caller runs the query on the pool of `readers.py`, which also reports errors.

SQLite reads a page that is not in memory from the disk, and the event loop waits meanwhile. Three rules limit this
wait. SQLite interrupts a query that takes longer than `SECONDS`. After two such queries in a row, this object gives no
answer for `PAUSE` times as long. So slow queries take at most 4 % of the event loop's time. The caller does not use
this object while a transaction of the writer takes long, because a disk that hangs stops the writer too. So the event
loop hangs only if the disk hangs in a brief query, and no write was in progress.

Invariants: a query here waits for no lock of SQLite. An answer has all data that any process committed before the call.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Final

from antiphon.stores.sqlite.database import Place, store_error

SECONDS: Final = 0.02
"""The time after which SQLite interrupts a brief query. A busy machine may not run the thread for some milliseconds, so
a shorter time would interrupt queries without a reason."""
PAUSE: Final = 50
"""The time without brief queries after a slow query, as a multiple of the time that the slow query took."""
_STEPS: Final = 1000
"""The number of steps of SQLite's virtual machine between two checks of the time. 1000 steps take about 0.1 ms."""


class BriefReads:
    """Runs brief queries on a separate connection. One thread makes all calls."""

    def __init__(self, place: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._due = 0.0
        self._paused_until = 0.0
        self._was_slow = False

    def start(self) -> None:
        """Open the connection to an existing database. Raises `StoreError`."""
        try:
            connection = sqlite3.connect(self._place.reader_uri, uri=True, isolation_level=None, timeout=0.0)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only=ON")
        except sqlite3.Error as error:
            raise store_error("Opening", self._place, error) from error
        connection.set_progress_handler(self._is_late, _STEPS)
        self._connection = connection

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> list[sqlite3.Row] | None:
        """Return all rows of one query, or None if the query failed, took too long, or may not run now."""
        began = self._clock()
        if self._connection is None or began < self._paused_until:
            return None
        self._due = began + SECONDS
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error:
            return None
        finally:
            ended = self._clock()
            slow = ended > self._due
            # A single slow query may be the first one of a process.
            if slow and self._was_slow:
                self._paused_until = ended + PAUSE * (ended - began)
            self._was_slow = slow

    def close(self) -> None:
        """Close the connection. Later calls of `fetch` return None."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _is_late(self) -> bool:
        return self._clock() > self._due
