"""How SQLite executes the SQL of files: always by an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from antiphon.stores import files
from antiphon.stores.blobs import pending
from antiphon.stores.sqlite import tables as sqlite_tables
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.files import NOTE_UNKNOWN, SQL
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from antiphon.stores.sqlite.tables import sqlite_sql

_NAMED = {
    "owner": "o1",
    "id": "file-7",
    "name": "",
    "purpose": None,
    "media_type": "",
    "size": 1,
    "sha256": "",
    "created_at": 0,
    "expires_at": None,
    "blob": "",
    "limit": 100,
    "now_ms": 1,
    "room": 4096,
    "after_at": 5,
    "after": "file-5",
    "blobs": '["b7"]',
    "key": "b7",
    "keys": '["b7"]',
    "lease": 1,
    "holders": '["b7"]',
}
_QUERIES = {
    name: sqlite_sql(sql)
    for name, sql in {
        "insert": SQL.insert[0],
        "find": SQL.find,
        "delete": files.DELETE,
        "used": SQL.used,
        "list forward": SQL.page[0],
        "list backward": SQL.page[1],
        "expired": SQL.expired,
        "delete expired": files.DELETE_LET_GO,
        "let go expired": SQL.let_go_expired,
        "keep": pending.KEEP,
        "renew": pending.RENEW,
        "is held": pending.IS_HELD,
        "taken": pending.TAKEN,
        "forget": pending.FORGET,
        "note unknown": NOTE_UNKNOWN,
    }.items()
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Five thousand files of seven owners, with the statistics of ANALYZE."""
    connection = connect_writer(tmp_path_factory.mktemp("queries") / "test.db")
    migrate(connection, packaged_steps())
    sqlite_tables.prepare_lease_clock(connection, ())
    connection.execute("BEGIN")
    connection.executemany(
        f"INSERT INTO files (owner, {files.COLUMNS}) VALUES (?, ?, 'n', 'user_data', 't', 1, 's', ?, ?, ?)",
        [(f"o{n % 7}", f"file-{n}", n, n if n % 50 == 0 else None, f"b{n}") for n in range(5000)],
    )
    connection.executemany("INSERT INTO pending_blobs VALUES (?, 1)", [(f"p{n}",) for n in range(5000)])
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    yield connection
    connection.close()


@pytest.mark.parametrize("name", _QUERIES)
def test_no_query_scans_the_table_or_sorts(database: sqlite3.Connection, name: str) -> None:
    sql = _QUERIES[name]
    named = {key: value for key, value in _NAMED.items() if f":{key}" in sql}
    steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", named)]
    scanned = {line for line in steps if line.startswith("SCAN")}
    assert scanned <= {"SCAN CONSTANT ROW", "SCAN held", "SCAN json_each VIRTUAL TABLE INDEX 1:"}, steps
    # (A Bloom filter of a list behind IN is the list's own, since SQLite 3.53 at the latest.)
    costly = ("AUTOMATIC", "TEMP B-TREE", "BLOOM FILTER ON")
    assert not [line for line in steps if any(word in line for word in costly)], steps


def test_an_owners_total_is_read_from_the_index_alone(database: sqlite3.Connection) -> None:
    (step,) = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sqlite_sql(SQL.used)}", {"owner": "o1"})]
    assert "COVERING INDEX files_list" in step
