"""Runs queries on a small pool of read-only connections to a SQLite database.

Lives here: the pool of connections, and the timeout of a query. Not here: SQL of any store, writing (`writer.py`).

The pool interrupts a query after its timeout, or when its caller is cancelled. The connection returns to the pool when
the query has ended. A query that hangs in a disk operation cannot be interrupted. The connection of a hanging query
stays out of the pool until the query ends, so no other query waits for it.

The pool reserves one connection for the process's internal queries (`own=True`), for example the query for new jobs. So
internal queries never queue behind the reads of clients.

Invariants: one query is one statement, so a query reads one snapshot. A query sees all data that any process committed
before the query began. A connection runs one query at a time.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import structlog

from antiphon.engine.waiting import look_at
from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import Place, place_of, store_error

Row = sqlite3.Row
"""A result row. Code reads a column by its name in the query, or unpacks the row like a tuple."""

_log = structlog.get_logger(__name__)

# With WAL, a reader waits for a lock only while another process recovers the write-ahead log after a crash.
_BUSY_SECONDS = 5.0

# SQLite does not access the file when it opens a connection. This query makes SQLite read the file.
_TOUCH = "SELECT count(*) FROM sqlite_schema"


def daemonic_connection(uri: str) -> aiosqlite.Connection:
    """Create a connection whose thread is a daemon, so that the thread does not keep the process alive. `await` opens
    the connection.

    The process must be able to exit without closing the store, after a failed start or while a query hangs in a disk
    operation. A thread inherits the daemon flag from the thread that creates it. The constructor of an aiosqlite
    connection creates the connection's thread. So a daemon thread calls this constructor.
    """
    made: list[aiosqlite.Connection] = []

    def make() -> None:
        made.append(aiosqlite.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS))

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    maker.join()
    return made[0]


class SqliteReaders:
    """Runs queries on the pool. When all connections are in use, callers wait in the order of their calls."""

    def __init__(
        self,
        where: Path | Place,
        connections: int = 2,
        *,
        seconds: float = 10.0,
        connect: Callable[[str], aiosqlite.Connection] = daemonic_connection,
    ) -> None:
        """`connections`: the size of the pool. `seconds`: the timeout of one query, including the wait for a
        connection. `connect`: creates a connection from a URI."""
        self._connect = connect
        self._place = place_of(where)
        self.seconds = seconds
        self._size = connections
        self._all: list[aiosqlite.Connection] = []
        self._free = _Free()
        self._own = _Free()
        self._closing = False
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> int:
        """The number of pool connections that run a query."""
        return self._size - len(self._free)

    async def start(self) -> None:
        """Open the connections to an existing database. Raises `StoreError`."""
        try:
            # Open the database once without aiosqlite to find errors. When aiosqlite cannot open a database, the thread
            # of aiosqlite wakes the event loop as the thread ends. The event loop may be closed by then.
            sqlite3.connect(self._place.reader_uri, uri=True).close()
            for _ in range(self._size):
                self._free.put_nowait(await self._open_one())
            self._own.put_nowait(await self._open_one())
        except Exception as error:
            await self._close_all()
            raise store_error("Opening", self._place, error) from error

    async def fetch(self, sql: str, parameters: Mapping[str, object], *, own: bool = False) -> list[Row]:
        """Return all rows of one query. `own`: the process itself needs this short query, so the reserved connection
        runs it. Raises `StoreError`."""
        if self._closing:
            raise StoreError("The store is closed.")
        self._accepted += 1
        self._idle.clear()
        try:
            return await self._fetch(self._own if own else self._free, sql, parameters)
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._idle.set()

    async def aclose(self) -> None:
        """Wait for the accepted queries, then close all connections. Later calls of `fetch` raise `StoreError`."""
        if self._closing:
            return
        self._closing = True
        await self._idle.wait()
        await self._close_all()

    async def _fetch(self, free: _Free, sql: str, parameters: Mapping[str, object]) -> list[Row]:
        connection: aiosqlite.Connection | None = None
        query: asyncio.Future[Any] | None = None
        try:
            async with asyncio.timeout(self.seconds):
                connection = await free.get()
                query = asyncio.ensure_future(connection.execute_fetchall(sql, parameters))
                query.add_done_callback(partial(self._lend_again, free, connection))
                rows: list[Row] = await asyncio.shield(query)
                return rows
        except TimeoutError:
            message = f"Reading {self._place} took longer than {self.seconds:g} seconds ('timeouts.read')."
            raise StoreError(message, reason="slow", setting="timeouts.read") from None
        except Exception as error:
            raise store_error("Reading", self._place, error) from error
        finally:
            if connection is not None and query is not None and not query.done():
                await connection.interrupt()

    def _lend_again(
        self,
        free: _Free,
        connection: aiosqlite.Connection,
        query: asyncio.Future[object],
    ) -> None:
        look_at(query)  # without this call, asyncio warns if the caller was cancelled
        free.put_nowait(connection)

    async def _open_one(self) -> aiosqlite.Connection:
        connection = await self._connect(self._place.reader_uri)
        self._all.append(connection)
        connection.row_factory = sqlite3.Row
        await connection.execute_fetchall("PRAGMA query_only=ON")
        await connection.execute_fetchall(_TOUCH)
        return connection

    async def _close_all(self) -> None:
        while self._all:
            try:
                async with asyncio.timeout(self.seconds):
                    await self._all.pop().close()
            except TimeoutError:
                # A query of this connection hangs in a disk operation. The daemon thread does not keep the process
                # alive.
                _log.error("reader_not_closed", database=str(self._place), seconds=self.seconds)


class _Free:
    """The idle connections. The caller that has waited longest gets the next idle connection. With `asyncio.Queue`, a
    new caller could take the connection for which a waiting caller was just woken. The woken caller would have to wait
    behind all other callers."""

    def __init__(self) -> None:
        # `get` takes the connection that was used last, because its page cache is the warmest.
        self._connections: list[aiosqlite.Connection] = []
        self._number = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return len(self._connections)

    def put_nowait(self, connection: aiosqlite.Connection) -> None:
        self._connections.append(connection)
        self._number.release()

    async def get(self) -> aiosqlite.Connection:
        await self._number.acquire()
        return self._connections.pop()
