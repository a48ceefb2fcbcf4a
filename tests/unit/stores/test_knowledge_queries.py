"""How SQLite executes the SQL of vector stores: by an index, and the words before everything else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, cast

import pytest

from antiphon.stores.sqlite import tables as sqlite_tables
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from antiphon.stores.sqlite.tables import SqliteTables, sqlite_sql
from antiphon.stores.sqlite.vectors import chunk_index, ingestion
from antiphon.stores.sqlite.vectors import sql as vector_sql
from antiphon.stores.vector_stores import KNOWN
from antiphon.types.search import Filter

_FILTERS = Filter(
    "and", parts=(Filter("eq", "n", 5), Filter("or", parts=(Filter("gt", "n", 1), Filter("nin", "kind", ("a", "b")))))
)
_CONDITION, _PARAMETERS = vector_sql.ATTRIBUTES.condition(_FILTERS)
SQL = vector_sql.SqliteVectorSql()
WORK = ingestion.SqliteIngestion(SqliteTables(cast(Any, None), cast(Any, None)))
_QUERIES = {
    **{
        name: sqlite_sql(sql)
        for name, sql in {
            "get_store": SQL.get_store,
            "stores_forward": SQL.stores[0],
            "stores_backward": SQL.stores[1],
            "update_store": SQL.update_store,
            "touch_stores": SQL.touch,
            "hold_used": SQL.hold_used,
            "bump_stores_of_file": SQL.bump_stores_of_file,
            "insert_file": vector_sql.INSERT_FILE,
            "insert_attribute": vector_sql.INSERT_ATTRIBUTE,
            "drop_attributes": vector_sql.DROP_ATTRIBUTES,
            "set_attributes": SQL.set_attributes,
            "delete_file": SQL.delete_file,
            "delete_everywhere": SQL.delete_everywhere,
            "get_file": SQL.get_file,
            "files_forward": SQL.files[0],
            "files_backward": SQL.files[1],
            "get_batch": SQL.get_batch,
            "cancel_batch": SQL.cancel_batch,
            "cancel_files": vector_sql.CANCEL_FILES,
            "file_text": vector_sql.FILE_TEXT,
            **{f"trash_{which}": sql for which, sql in vector_sql.TRASH.items()},
            "renew": WORK.renew_files,
            "release": WORK.release_file,
            "bump_store": WORK.bump_store,
            "complete": WORK.complete_file,
            "fail": WORK.fail_file,
            "waiting": WORK.count_waiting,
            "expired": ingestion.EXPIRED,
            "known": KNOWN.format(number="no"),
        }.items()
    },
    "claimable": ingestion.CLAIMABLE,
    "claim": ingestion.CLAIM,
    "new_number": ingestion.NEW_NUMBER,
    "trash_attempt": ingestion.TRASH_ATTEMPT,
    "claimed": ingestion.CLAIMED,
    "hold": ingestion.HOLD,
    "trashed_chunks": ingestion.TRASHED_CHUNKS,
    "delete_chunks": ingestion.DELETE_CHUNKS,
    "match": chunk_index.MATCH.format(table="fts_vs_1", condition="1"),
    "match_filtered": chunk_index.MATCH.format(table="fts_vs_1", condition=_CONDITION),
    "files": chunk_index.FILES.format(condition="1"),
    "files_filtered": chunk_index.FILES.format(condition=_CONDITION),
    "vectors": chunk_index.VECTORS,
    "hits": chunk_index.HITS,
}
_NAMED: dict[str, Any] = {
    **_PARAMETERS,
    **dict.fromkeys(("id", "owner", "file_id", "batch_id", "claim", "model", "key", "kind", "query"), "x"),
    **dict.fromkeys(
        (
            "no",
            "at",
            "now_ms",
            "active",
            "lease",
            "first",
            "last",
            "end",
            "store",
            "number",
            "limit",
            "pause",
            "uncounted",
        ),
        5,
    ),
    **dict.fromkeys(
        ("name", "metadata", "days", "state", "filename", "attributes", "chunking", "title", "text", "code", "message"),
        None,
    ),
    **dict.fromkeys(("new_name", "clear", "size", "overlap", "chunks", "usage_bytes"), 1),
    **dict.fromkeys(("ids", "claims", "holders", "numbers", "stores"), "[1, 2]"),
    "low": None,
    "high": "file-7",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Two stores with a thousand files, and more that are empty (a table of two rows is rightly read as a whole);
    analysed."""
    connection = connect_writer(tmp_path_factory.mktemp("plans") / "vectors.db")
    migrate(connection, packaged_steps("vector_migrations"))
    sqlite_tables.prepare_lease_clock(connection, ())
    connection.execute("BEGIN")
    for no in range(1, 101):
        connection.execute(
            "INSERT INTO vector_stores (no, id, owner, metadata, created_at, last_active_at) "
            "VALUES (?, ?, 'o', x'7b7d', 1, 1)",
            (no, f"vs_{no}"),
        )
    for no in (1, 2):
        connection.execute(vector_sql.INDEX_TABLE.format(table=f"fts_vs_{no}"))
    for number in range(1, 1_001):
        connection.execute(
            "INSERT INTO vector_files (no, store_no, file_id, filename, status, attributes, chunking, chunk_size, "
            "chunk_overlap, created_at) VALUES (?, ?, ?, 'x', ?, x'7b7d', 'auto', 800, 400, ?)",
            (number, 1 + number % 2, f"file-{number}", "in_progress" if number < 20 else "completed", number),
        )
        connection.execute("INSERT INTO file_attributes VALUES (?, 'n', 'n', ?, ?)", (1 + number % 2, number, number))
        for place in range(4):
            chunk = number << 20 | place
            connection.execute("INSERT INTO chunks (id, tokens, text) VALUES (?, 3, 'birds fly far')", (chunk,))
            words = f"INSERT INTO fts_vs_{1 + number % 2} (rowid, title, text) VALUES (?, 'x', 'birds fly far')"
            connection.execute(words, (chunk,))
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    rows = connection.execute("EXPLAIN QUERY PLAN " + sql, _NAMED).fetchall()
    return [row[3] for row in rows]


@pytest.mark.parametrize("name", _QUERIES)
def test_no_table_is_read_as_a_whole(database: sqlite3.Connection, name: str) -> None:
    steps = plan(database, _QUERIES[name])
    small = ("file_numbers", "json_each", "value", "held", "(subquery", "n VIRTUAL", "w VIRTUAL")
    for step in steps:
        # One of a list behind IN is the list's own; one on a table means that the table is read for a join.
        assert "BLOOM FILTER ON" not in step, steps
        if step.startswith("SCAN") and not any(each in step for each in small):
            assert "INDEX" in step or "fts_vs_1 VIRTUAL TABLE" in step, steps


@pytest.mark.parametrize("name", ["match", "match_filtered"])
def test_the_words_come_first(database: sqlite3.Connection, name: str) -> None:
    """Looking for the words of a query once for every file that may have them would take minutes."""
    steps = plan(database, _QUERIES[name])
    first = next(step for step in steps if step.startswith("SCAN"))
    assert "fts_vs_1 VIRTUAL TABLE" in first, steps
    # `M…` is the match alone; a `=` behind it would be a look-up of one row.
    assert "=" not in first.split("INDEX", 1)[1].split(":", 1)[1], steps


def test_vectors_are_read_without_their_texts(database: sqlite3.Connection) -> None:
    """A vector lies before the text in its row, so that the text's pages need not be read."""
    columns = [row[1] for row in database.execute("PRAGMA table_info(chunks)")]
    assert columns.index("vector") < columns.index("text")
