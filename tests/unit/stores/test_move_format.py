"""What is moved to another backend: no table of SQLite's is forgotten."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from antiphon.stores.move_format import COLUMNS
from antiphon.stores.sqlite.migrate import migrate, packaged_steps

# Made of other rows, or of this machine alone.
NOT_MOVED = {
    *("schema_migrations", "lease_clock", "sweeps", "owner_bytes"),
    *("file_numbers", "vector_trash"),
    # Processes of the new database read all client keys at their start.
    "client_key_changes",
    # Requests in flight end before a move.
    *("live_processes", "live_viewers", "live_cancels"),
}


@pytest.mark.parametrize("folder", ["migrations", "vector_migrations"])
def test_every_table_is_moved_or_known_not_to_be(folder: str) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, packaged_steps(folder))
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables - NOT_MOVED <= set(COLUMNS)
