"""The readers of a SQLite database: a small pool of connections that cannot write.

Lives here: opening them, lending them, closing them. Not here: SQL of any store; writing (`sqlite_writer.py`).

Invariant: one query is one statement, hence one snapshot of the database, and it sees everything that was
committed before it began, by any process. A connection serves one query at a time.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import aiosqlite

from antiphon.errors import StoreError
from antiphon.stores.sqlite_database import reader_uri, store_error

__all__ = ["Row", "SqliteReaders"]

Row = tuple[Any, ...]

# A reader waits for a lock only while another process recovers the log after a crash.
_BUSY_SECONDS = 5.0


class SqliteReaders:
    """Runs queries; callers beyond the number of connections wait their turn."""

    def __init__(self, path: Path, connections: int = 2) -> None:
        self._path = path
        self._size = connections
        self._all: list[aiosqlite.Connection] = []
        # Last in, first out: the connection used last has the warmest cache.
        self._free: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        self._closing = False
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Open the connections; the database exists already. Raises `StoreError`."""
        try:
            for _ in range(self._size):
                await self._open_one()
        except Exception as error:
            await self._close_all()
            raise store_error("Opening", self._path, error) from error

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of one query; raises `StoreError`."""
        if self._closing:
            raise StoreError("The store is closed.")
        self._accepted += 1
        self._idle.clear()
        try:
            return await self._fetch(sql, parameters)
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._idle.set()

    async def aclose(self) -> None:
        """Let the queries that were accepted end, then close."""
        if self._closing:
            return
        self._closing = True
        await self._idle.wait()
        await self._close_all()

    async def _fetch(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        connection = await self._free.get()
        try:
            return cast(list[Row], await connection.execute_fetchall(sql, parameters))
        except Exception as error:
            raise store_error("Reading", self._path, error) from error
        finally:
            # Also when the caller was cancelled: the statement may still run in the connection's thread, and the
            # next query simply queues behind it there.
            self._free.put_nowait(connection)

    async def _open_one(self) -> None:
        failure: sqlite3.Error | None = None

        def connect() -> sqlite3.Connection:
            # aiosqlite abandons its thread when connecting fails, and the thread may then wake a loop that is
            # closed. So it never fails here: the stand-in is closed properly at once.
            nonlocal failure
            try:
                return _connect(self._path)
            except sqlite3.Error as error:
                failure = error
                return sqlite3.connect(":memory:")

        opening = aiosqlite.Connection(connect, iter_chunk_size=64)
        # A program that ends without closing the store (a start that failed half-way) must end, not wait for a
        # thread that nobody will stop. aiosqlite has no public switch for this.
        opening._thread.daemon = True
        connection = await opening
        self._all.append(connection)
        if failure is not None:
            raise failure
        self._free.put_nowait(connection)

    async def _close_all(self) -> None:
        while self._all:
            await self._all.pop().close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(reader_uri(path), uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_schema")  # touches the file: opening alone does not
    except BaseException:
        connection.close()
        raise
    return connection
