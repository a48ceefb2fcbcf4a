"""The clock by which all leases of a machine are judged.

Lives here: what the time of a lease is, how SQL asks for it (`lease_now()`, where something is written), and what
becomes of leases when the machine starts anew. Not here: what is leased, how long, who renews it. Dates that clients
see (`created_at`, `expires_at`) are the wall clock's, and never decide who holds something.

The processes that share a database file are on one machine, so the machine's monotonic clock is the same for all of
them; unlike the wall clock it cannot be set, and it rests while the machine sleeps, as those do who hold something. It
begins anew with every start of the machine: whoever opens a database first after one finds another boot id than is
noted in it, and ends all leases, since whoever held them is gone. (A database server's own `now()` takes this
module's place where there is one: callers only ever give durations.)

Invariant: a lease is taken, renewed and judged by this clock, inside the transaction that does so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from antiphon.stores.sqlite.database import locked

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOTED = "SELECT boot FROM lease_clock"
_NOTE = ("DELETE FROM lease_clock", "INSERT INTO lease_clock (boot) VALUES (?)")


def lease_now() -> int:
    """The time of leases, in milliseconds: since the machine's start, where that has an id, else since the epoch."""
    return (time.monotonic_ns() if _boot else time.time_ns()) // 1_000_000


def prepare(connection: sqlite3.Connection, end_leases: Sequence[str]) -> None:
    """Let SQL on this connection say `lease_now()`, and end all leases if the machine was started since the database
    was opened last; `end_leases` are the statements that do so."""
    connection.create_function("lease_now", 0, lambda: lease_now())
    noted = [(_boot,)]
    if connection.execute(_NOTED).fetchall() == noted:
        return
    with locked(connection):
        # Again: another process may have been faster, and have taken leases since.
        if connection.execute(_NOTED).fetchall() != noted:
            for statement in end_leases:
                connection.execute(statement)
            connection.execute(_NOTE[0])
            connection.execute(_NOTE[1], (_boot,))


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


_boot = _read_boot_id()
