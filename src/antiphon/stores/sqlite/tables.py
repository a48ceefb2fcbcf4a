"""Implements `Tables`, the database interface of the stores, with a `SqliteWriter` and `SqliteReaders`.

Lives here: translating the shared SQL dialect into SQLite's, opening and closing the writer and the readers, and their
metrics. This module also has the lease clock, which decides when a lease on this machine expires. After a reboot, this
module ends all leases. Not here: the definition of the dialect (`../tables.py`), threads and transactions (`writer.py`,
`readers.py`, `brief_reads.py`), the purpose, duration and renewal of leases. Dates that clients see (`created_at`,
`expires_at`) come from the wall clock and never affect a lease.

All processes that share a database file run on one machine, so they share its monotonic clock. An operator can set the
wall clock, but not the monotonic clock. While the machine sleeps, the monotonic clock stops, and so do the processes
that hold leases. The monotonic clock restarts at each boot. After a reboot, the first process that opens a database
finds the boot id of the previous boot in table `lease_clock`. This first process ends all leases, because the reboot
ended the lease holders. The backend for PostgreSQL uses the server's clock instead.

Invariant: a transaction that takes, renews or checks a lease reads the monotonic clock inside the transaction.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from msgspec import structs

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.waiting import SIZES
from antiphon.stores.backend import DatabaseStatistics
from antiphon.stores.sqlite.brief_reads import BriefReads
from antiphon.stores.sqlite.database import Place, write_lock
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter, writer_limits
from antiphon.stores.tables import Counts, Parameters, Statement

_WORDS = (
    (re.compile(r"\bIN \(:([a-z_]+)\.\.\.\)"), r"IN (SELECT value FROM json_each(:\1))"),
    (re.compile(r"\blease_in\(:([a-z_]+)\)"), r"(lease_now() + :\1)"),
    (re.compile(r"\bplace_columns\(\)"), "next_pos"),
    (re.compile(r"\bnew_places\(\)"), "place"),
    (re.compile(r"\bnew_place\(\)"), "now_ms() * 1000"),
    (re.compile(r"\bfirst_place\(([a-z]+)\)"), r"\1.created_at * 1000"),
    (re.compile(r"\b(now_ms|date_now)\(\)"), ":now_ms"),
    (re.compile(r"\bdate_in\(:([a-z_]+)\)"), r"(:now_ms + :\1)"),
    (re.compile(r"\btaken\(\)"), "0"),
    (re.compile(r"\bfor_ever\(\)"), str((1 << 63) - 1)),
    (re.compile(r"\bgreatest\("), "max("),
    (re.compile(r"\bleast\("), "min("),
    (re.compile(r"(\bORDER BY [a-z_, ]+ )?\bFOR (NO KEY )?UPDATE\b( SKIP LOCKED)?"), ""),
)


@lru_cache(maxsize=1024)
def sqlite_sql(sql: str) -> str:
    """Translate a statement of a shared store into SQLite's dialect."""
    for word, meaning in _WORDS:
        sql = word.sub(meaning, sql)
    return sql


LeaseClock = Callable[[], int]
"""A function that returns the lease clock's time in milliseconds."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOTED = "SELECT boot FROM lease_clock"
_NOTE = ("DELETE FROM lease_clock", "INSERT INTO lease_clock (boot) VALUES (?)")


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


BOOT = _read_boot_id()
"""The id of the machine's current boot, or an empty string if the machine has no boot id."""


def lease_now(boot: str = BOOT) -> int:
    """Return the lease clock's time in milliseconds: since boot if the machine has a boot id, else since the epoch."""
    return (time.monotonic_ns() if boot else time.time_ns()) // 1_000_000


def prepare_lease_clock(
    connection: sqlite3.Connection, end_leases: Sequence[str], boot: str = BOOT, clock: LeaseClock = lease_now
) -> None:
    """Define the SQL function `lease_now()` on this connection. If the machine has rebooted since a process last opened
    the database, run `end_leases`, the statements that expire all leases."""
    connection.create_function("lease_now", 0, lambda: clock())
    noted = [(boot,)]
    if connection.execute(_NOTED).fetchall() == noted:
        return
    with write_lock(connection):
        # Check again under the lock, because another process may have ended the old leases and may hold new leases.
        if connection.execute(_NOTED).fetchall() != noted:
            for statement in end_leases:
                connection.execute(statement)
            connection.execute(_NOTE[0])
            connection.execute(_NOTE[1], (boot,))


class SqliteTables:
    """Implements `Tables` with one `SqliteWriter` and one pool of connections for reads (`SqliteReaders`). Also
    implements `StoreStatistics`, the metrics of the database."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        leases: LeaseClock = lease_now,
        brief: BriefReads | None = None,
    ) -> None:
        """`brief`: answers `fetch_now`. With None, `fetch_now` has no answer."""
        self.writer = writer
        self.readers = readers
        self._brief = brief
        self.lease_now = leases

    @classmethod
    async def open(
        cls,
        place: Place,
        prepare: Callable[[sqlite3.Connection], None],
        timeouts: TimeoutSettings,
        connections: int = 2,
        leases: LeaseClock = lease_now,
    ) -> SqliteTables:
        """Open the database, and create it if it is missing. `prepare` receives the writer's connection before the
        first write. `connections`: the number of connections for reads. `leases`: the function that returns the time
        for leases. Raises `StoreError`."""
        writer = SqliteWriter(place, prepare, writer_limits(timeouts))
        await writer.start()
        readers, brief = SqliteReaders(place, connections, seconds=timeouts.read), BriefReads(place)
        try:
            await readers.start()
            brief.start()
        except BaseException:
            await readers.aclose()
            await writer.aclose()
            raise
        return cls(writer, readers, leases, brief)

    async def aclose(self) -> None:
        """Finish the accepted queries and writes, then close all connections. The writer closes last, because SQLite's
        last connection moves the write-ahead log into the database file."""
        if self._brief is not None:
            self._brief.close()
        await self.readers.aclose()
        await self.writer.aclose()

    @property
    def name(self) -> str:
        """The database's name in metric labels, for example `sessions`."""
        return self.writer.place.name

    @property
    def waiting(self) -> int:
        """The number of units of writes in the writer's queue."""
        return self.writer.waiting

    @property
    def busy(self) -> int:
        """The number of connections for reads that run a query."""
        return self.readers.busy

    @property
    def groups(self) -> Mapping[int, int]:
        """A histogram of commits: the number of transactions by the number of units in each. Returns a copy, because
        the writer's thread changes the original."""
        return Counter(dict(self.writer.groups))

    async def look(self) -> DatabaseStatistics:
        """Measure the size of the database in a worker thread."""
        return DatabaseStatistics(await SIZES.run(self.writer.place.size))

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> list[Row]:
        """See `Tables.fetch`."""
        # Only the writer's connection has the SQL function `lease_now()`, so a query gets the time as a parameter.
        text = sqlite_sql(sql).replace("lease_now()", ":lease_now")
        return await self.readers.fetch(text, _bound(named) | {"lease_now": self.lease_now()}, own=own)

    def fetch_now(self, sql: str, named: Mapping[str, object]) -> list[Row] | None:
        """See `Tables.fetch_now`."""
        if self._brief is None or self.writer.is_slow:
            return None
        return self._brief.fetch(sqlite_sql(sql), named)

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """See `Tables.run`."""
        return await self.writer.run(sqlite_steps(unit), undo=sqlite_steps(undo))


def sqlite_steps(unit: Sequence[Statement]) -> list[Statement]:
    """Translate statements of the shared stores into SQLite's dialect, in the form that the writer runs."""
    return [
        structs.replace(
            step, sql=sqlite_sql(step.sql), parameters=step.parameters if step.light else _given(step.parameters)
        )
        for step in unit
    ]


def _given(parameters: Parameters) -> Parameters:
    if isinstance(parameters, Mapping):
        return _bound(parameters)
    # Statements that only the SQLite backend uses may have positional parameters.
    return [_bound(each) if isinstance(each, Mapping) else each for each in parameters] if parameters else parameters


def _bound(named: Mapping[str, object]) -> dict[str, object]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in named.items()}
