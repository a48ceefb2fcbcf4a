"""Provides the clock that decides when a lease on this machine expires.

Lives here: the time of the lease clock, the SQL function `lease_now()` for writes, and the end of all leases after a
reboot. Not here: the purpose, duration and renewal of leases. Dates that clients see (`created_at`, `expires_at`) come
from the wall clock and never affect a lease.

All processes that share a database file run on one machine, so they share its monotonic clock. Unlike the wall clock,
the monotonic clock cannot be set by an operator. The clock stops while the machine sleeps, as the lease holders do. The
clock restarts at each boot. After a reboot, the first process that opens a database finds the boot id of the previous
boot in table `lease_clock`. This first process ends all leases, because the reboot ended the lease holders. With
PostgreSQL, the server's clock replaces this module.

Invariant: a transaction that takes, renews or checks a lease reads this clock inside the transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from antiphon.stores.sqlite.database import locked

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
"""The id of the machine's current boot. Empty if the machine has none."""


def lease_now(boot: str = BOOT) -> int:
    """Return the lease clock's time in milliseconds: since boot if the machine has a boot id, else since the epoch."""
    return (time.monotonic_ns() if boot else time.time_ns()) // 1_000_000


def prepare(
    connection: sqlite3.Connection, end_leases: Sequence[str], boot: str = BOOT, clock: LeaseClock = lease_now
) -> None:
    """Define the SQL function `lease_now()` on this connection. If the machine has rebooted since a process last opened
    the database, run `end_leases`, the statements that expire all leases."""
    connection.create_function("lease_now", 0, lambda: clock())
    noted = [(boot,)]
    if connection.execute(_NOTED).fetchall() == noted:
        return
    with locked(connection):
        # Check again under the lock: another process may have ended the old leases and may hold new ones.
        if connection.execute(_NOTED).fetchall() != noted:
            for statement in end_leases:
                connection.execute(statement)
            connection.execute(_NOTE[0])
            connection.execute(_NOTE[1], (boot,))
