"""How SQLite executes the store's SQL: always by an index, never through a Bloom filter over a whole table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from antiphon.errors import ChainBroken, ChainTooLong
from antiphon.stores import jobs, responses
from antiphon.stores.bodies import PLAIN
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.sqlite import jobs as own_jobs
from antiphon.stores.sqlite import response_rows, retention
from antiphon.stores.sqlite import responses as own_responses
from antiphon.stores.sqlite.backend import SESSION_STEPS, SqliteStores, open_sqlite, prepare
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.readers import Row
from antiphon.stores.sqlite.tables import SqliteTables, sqlite_sql
from tests.contracts.store_contract import ALICE, record, save_chain

_NAMED = {"id": "r500", "owner": "o1", "limit": 1000, "ids": '["i500", "i7"]', "low": "i500", "high": None}
_QUERIES = (
    {
        "load_items": own_responses.LOAD_ITEMS,
        "touch_chain": response_rows.TOUCH_CHAIN,
        "next_response": response_rows.NEXT_RESPONSES.sql(1),
        "next_responses": response_rows.NEXT_RESPONSES.sql(3),
        "claimable": own_jobs.CLAIMABLE,
        "count_jobs": own_jobs.COUNT_JOBS,
        "claim_jobs": own_jobs.CLAIM_JOBS,
        "start_responses": own_jobs.START_RESPONSES,
        "claimed": own_jobs.CLAIMED,
        "take_back_events": own_jobs.TAKE_BACK_EVENTS,
        "append_events": own_jobs.APPEND_EVENTS,
        "drop_events": own_jobs.DROP_EVENTS,
        "queue": sqlite_sql(own_jobs.SQL.queue).replace("lease_now()", ":lease_now"),
        "release": sqlite_sql(own_jobs.SQL.release),
    }
    | {
        f"{module.__name__.rpartition('.')[2]}_{name.lower()}{number}": sqlite_sql(sql)
        for module in (responses, jobs)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and name != "SWEEPER" and name != "PLAIN"
        for number, sql in enumerate(value if isinstance(value, tuple) else (value,))
    }
    | {
        f"retention_{name.lower()}": value
        for name, value in vars(retention).items()
        if name.isupper() and not name.startswith("_") and name != "SWEEPER"
    }
)
_MORE_NAMED = {
    "holder": "r7",
    "pos": 3,
    "lease_now": 0,
    "uncounted": 1,
    **dict.fromkeys(("status", "type", "item_id", "seq"), "x"),
    **dict.fromkeys(("weight", "own_bytes", "completed_at", "input_tokens", "output_tokens"), 1),
    **dict.fromkeys(("body", "shown"), b""),
    "worker": "w1",
    "lease": 9,
    "besides": "[]",
    "able": "[]",
    "patient": 0,
    "last": 3,
    "first": 2,
    "data": b"",
    "after": 1,
    "bytes": 1 << 20,
    "last_event": 3,
    "before": 0,
    "now": 1,
    "rows": 10,
    "chains": "[]",
    "numbers": "[1]",
    "number": 1,
    "conversation_id": "c",
    "pause": 1,
    "leases": 1,
    "what": "x",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Five thousand responses in chains of ten, four items each, with the statistics of ANALYZE."""
    connection = connect_writer(tmp_path_factory.mktemp("queries") / "test.db")
    prepare(connection, SESSION_STEPS, ())
    connection.execute("BEGIN")
    for n in range(5000):
        root, owner = f"r{n - n % 10}", f"o{n // 10 % 7}"
        if n % 10 == 0:
            connection.execute("INSERT INTO chains (id, owner, updated_at) VALUES (?, ?, 0)", (root, owner))
        connection.execute(
            "INSERT INTO responses (id, owner, chain_id, prev_id, history_items, status, model, created_at, body) "
            "VALUES (?, ?, ?, ?, ?, 'completed', 'm', 0, x'00')",
            (f"r{n}", owner, root, f"r{n - 1}" if n % 10 else None, n % 10 * 4 + 4),
        )
        connection.executemany(
            response_rows.ITEMS.sql(1), [(f"r{n}", at // 2, at % 2, f"i{n}_{at}", "message", b"{}") for at in range(4)]
        )
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    yield connection
    connection.close()


def plan(database: sqlite3.Connection, sql: str) -> str:
    named = {name: value for name, value in {**_NAMED, **_MORE_NAMED, "at": 0}.items() if f":{name}" in sql}
    given = [0] * sql.count("?") if "?" in sql else named
    return "\n".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", given))


@pytest.mark.parametrize("name", _QUERIES)
def test_no_query_scans_a_table_or_builds_a_bloom_filter(database: sqlite3.Connection, name: str) -> None:
    steps = plan(database, _QUERIES[name])
    # (One of a list behind IN is the list's own.)
    assert "BLOOM FILTER ON" not in steps, steps
    # Subqueries scan what they selected by an index.
    scanned = [line for line in steps.splitlines() if line.startswith("SCAN") and "(subquery-" not in line]
    assert set(scanned) <= {
        "SCAN turn",
        "SCAN edge",
        "SCAN CONSTANT ROW",
        "SCAN wanted VIRTUAL TABLE INDEX 1:",
        *_SMALL,
    }, steps
    assert "AUTOMATIC" not in steps, steps


@pytest.mark.skipif(sqlite3.sqlite_version_info[:2] != (3, 40), reason="the planner's trap was measured on 3.40")
def test_the_trap_is_there_and_this_test_would_see_it(database: sqlite3.Connection) -> None:
    trapped = responses.LOAD_CHAIN.replace("CROSS JOIN", "JOIN").replace(
        "r.id = turn.prev_id", "r.id = turn.prev_id AND r.owner = :owner"
    )
    assert "BLOOM FILTER ON" in plan(database, trapped)


# What was selected by an index and bounded already.
_SMALL = {
    *("SCAN held", "SCAN size", "SCAN chosen", "SCAN gone", "SCAN c", "SCAN cut", "SCAN found"),
    *("SCAN w", "SCAN wanted", "SCAN page", "SCAN given", "SCAN summed", "SCAN summed LEFT-JOIN"),
    # As SQLite before 3.53 says it, and since.
    *("SCAN 3 CONSTANT ROWS", "SCAN 3-ROW VALUES CLAUSE"),
    "SCAN need VIRTUAL TABLE INDEX 1:",
    "SCAN json_each VIRTUAL TABLE INDEX 1:",
}


class CountingTables(SqliteTables):
    """Counts the queries."""

    queries = 0
    rows = 0

    async def fetch(self, sql: str, named: Mapping[str, Any], *, own: bool = False) -> list[Row]:
        self.queries += 1
        rows = await super().fetch(sql, named, own=own)
        self.rows = len(rows)
        return rows


def counted(stores: SqliteStores, chain_items: int) -> tuple[responses.ResponseStore, CountingTables]:
    tables = CountingTables(stores.tables.writer, stores.tables.readers)
    writer = own_responses.SqliteResponseWriter(stores.tables.writer, stores.tables.readers, IdempotencyStore(tables))
    limits = {"chain_items": chain_items, "history_bytes": 1 << 20, "page_bytes": 1 << 20}
    return responses.ResponseStore(tables, writer, own_responses.LOAD_ITEMS, bodies=PLAIN, **limits), tables


async def test_two_hundred_turns_are_one_query(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=1000)
    store, tables = counted(stores, 1000)
    await save_chain(stores.responses, "t", 200)
    chain = await store.load_chain(ALICE, "resp_t199")
    assert chain is not None and len(chain.items) == 600
    assert tables.queries == 1
    await stores.aclose()


async def test_a_chain_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=100)
    store, tables = counted(stores, 100)
    await save_chain(stores.responses, "t", 34)
    with pytest.raises(ChainTooLong):
        await store.load_chain(ALICE, "resp_t33")
    assert (tables.queries, tables.rows) == (1, 1)
    await stores.aclose()


async def test_turns_without_items_count_towards_the_limit(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=3)
    store = stores.responses
    for n in range(4):
        await store.save(record(f"e{n}", prev=f"e{n - 1}" if n else None, inputs=0, outputs=0))
    assert await store.load_chain(ALICE, "resp_e2") is not None
    with pytest.raises(ChainTooLong):
        await store.load_chain(ALICE, "resp_e3")
    await stores.aclose()


async def test_a_damaged_chain_that_runs_in_a_circle_ends(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=50)
    store = stores.responses
    await save_chain(store, "t", 3)
    database = sqlite3.connect(tmp_path / "sessions.db")
    database.execute("UPDATE responses SET prev_id = 'resp_t2' WHERE id = 'resp_t0'")
    database.commit()
    database.close()
    with pytest.raises(ChainBroken):
        await store.load_chain(ALICE, "resp_t2")
    await stores.aclose()


def test_a_chain_cannot_cross_owners_even_by_hand(database: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(
            "INSERT INTO responses (id, owner, chain_id, history_items, status, model, created_at, body) "
            "VALUES ('x', 'somebody else', 'r0', 1, 'completed', 'm', 0, x'00')"
        )


async def test_deleting_leaves_no_row_of_any_kind(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=1000)
    store = stores.responses
    await save_chain(store, "t", 3)
    await store.save(record("branch", prev="t1"))
    database = sqlite3.connect(tmp_path / "sessions.db")

    def rows() -> tuple[int, ...]:
        names = ("chains", "responses", "response_items")
        return tuple(database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names)

    assert rows() == (1, 4, 12)
    for name, left in (("t1", (1, 3, 9)), ("t0", (1, 2, 6)), ("t2", (1, 1, 3)), ("branch", (0, 0, 0))):
        assert await store.delete(ALICE, f"resp_{name}") is True
        assert rows() == left
    database.close()
    await stores.aclose()
