"""The readers of a SQLite database: a small pool of connections that cannot write.

Lives here: opening them, lending them, closing them. Not here: SQL of any store; writing (`sqlite_writer.py`).

Invariant: one query is one statement, hence one snapshot of the database, and it sees everything that was
committed before it began, by any process. A connection serves one query at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    async def start(self) -> None:
        """Open the connections; the database exists already. Raises `StoreError`."""
        try:
            for _ in range(self._size):
                connection = await aiosqlite.connect(
                    reader_uri(self._path), uri=True, isolation_level=None, timeout=_BUSY_SECONDS
                )
                self._all.append(connection)
                await connection.execute_fetchall("PRAGMA query_only=ON")
                self._free.put_nowait(connection)
        except Exception as error:
            await self._close_all()
            raise store_error("Opening", self._path, error) from error

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows of one query; raises `StoreError`."""
        if self._closing:
            raise StoreError("The store is closed.")
        connection = await self._free.get()
        try:
            return list(await connection.execute_fetchall(sql, parameters))
        except Exception as error:
            raise store_error("Reading", self._path, error) from error
        finally:
            # Also when the caller was cancelled: the statement may still run in the connection's thread, and the
            # next query simply queues behind it there.
            self._free.put_nowait(connection)

    async def aclose(self) -> None:
        """Let the queries that were accepted end, then close."""
        if self._closing:
            return
        self._closing = True
        for _ in self._all:
            await self._free.get()
        await self._close_all()

    async def _close_all(self) -> None:
        while self._all:
            await self._all.pop().close()
