"""Provides the clock that decides when a lease on this machine expires.

Lives here: the time of leases, the SQL function for it (`lease_now()`, in writes), and the end of all leases after a
reboot. Not here: what a lease protects, its duration, its renewal. Dates that clients see (`created_at`, `expires_at`)
come from the wall clock, and never decide about a lease.

All processes that share a database file run on one machine, so they share its monotonic clock. Unlike the wall clock,
no operator can set it, and it stops while the machine sleeps, as the lease holders do. It restarts at each boot. After
a reboot, the first process that opens a database finds a different boot id in it. It ends all leases, because their
holders ended with the reboot. (A database server's `now()` replaces this module; callers only pass durations.)

Invariant: a transaction that takes, renews or checks a lease reads this clock inside the transaction.
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
    """The time of leases in milliseconds: since boot where the machine has a boot id, else since the epoch."""
    return (time.monotonic_ns() if _boot else time.time_ns()) // 1_000_000


def prepare(connection: sqlite3.Connection, end_leases: Sequence[str]) -> None:
    """Define `lease_now()` on this connection, and end all leases if the machine has rebooted since the last open.
    `end_leases`: the statements that end them."""
    connection.create_function("lease_now", 0, lambda: lease_now())
    noted = [(_boot,)]
    if connection.execute(_NOTED).fetchall() == noted:
        return
    with locked(connection):
        # Check again: another process may have been faster, and may hold new leases.
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
