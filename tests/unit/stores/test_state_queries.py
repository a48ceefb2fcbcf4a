"""How SQLite executes the SQL of conversations and prompts: always by an index, however many of them there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.stores import conversations, prompts
from antiphon.stores.responses import LOAD_BEFORE
from antiphon.stores.sqlite import response_rows
from antiphon.stores.sqlite import tables as sqlite_tables
from antiphon.stores.sqlite.backend import open_sqlite
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from antiphon.stores.sqlite.tables import sqlite_sql
from tests.contracts.conversation_contract import in_conversation
from tests.contracts.store_contract import ALICE

_NAMED: dict[str, Any] = {
    "owner": "o1",
    "id": "c1",
    "at": 5,
    "now_ms": 5,
    "seq": 0,
    "type": "message",
    "shown": None,
    "lease": 9,
    "metadata": b"{}",
    "holder": "r1",
    "holders": '["r1"]',
    "ids": '["i1_1"]',
    "item_id": "i1_1",
    "low": "i1_1",
    "high": None,
    "limit": 100,
    "bytes": 1 << 20,
    "count": 2,
    "conversation_id": "c1",
    "joining": 2,
    "pos": 3,
    "version": 1,
    "expected": None,
    "cursor": "p1",
    "renamed": True,
    "name": "n",
    "body": b"{}",
}
_QUERIES = {
    f"{module.__name__.rpartition('.')[2]}.{name}{'' if number == 0 else '_BACKWARD'}": sqlite_sql(sql)
    for module in (conversations, prompts)
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith("_")
    for number, sql in enumerate(value if isinstance(value, tuple) else (value,))
    if isinstance(sql, str) and " " in sql
} | {
    "response_rows.JOIN_CONVERSATION": response_rows.JOIN_CONVERSATION,
    "response_rows.INSERT_CONVERSATION_ITEMS": response_rows.INSERT_CONVERSATION_ITEMS,
    "responses.LOAD_BEFORE": sqlite_sql(LOAD_BEFORE),
}
# The ids that were asked for, one page, and what a window function was given: all bounded already.
_SMALL = (
    *("SCAN cut", "SCAN found", "SCAN page", "SCAN size", "SCAN summed", "SCAN made", "SCAN held", "SCAN total"),
    *("SCAN edge", "SCAN CONSTANT ROW", "SCAN wanted VIRTUAL", "SCAN json_each VIRTUAL", "SCAN (subquery"),
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A thousand conversations of four items and as many prompts, with the statistics of ANALYZE."""
    connection = connect_writer(tmp_path_factory.mktemp("queries") / "test.db")
    migrate(connection, packaged_steps())
    sqlite_tables.prepare_lease_clock(connection, ())
    connection.execute("BEGIN")
    for n in range(1000):
        owner = f"o{n % 7}"
        named = {"owner": owner, "id": f"c{n}", "at": n, "metadata": b"{}"}
        connection.execute(sqlite_sql(conversations.INSERT), named | {"now_ms": n})
        item = {"owner": owner, "id": f"c{n}", "count": 4, "type": "message", "body": b"{}", "shown": None}
        for at in range(4):
            connection.execute(sqlite_sql(conversations.INSERT_ITEM), item | {"seq": at, "item_id": f"i{n}_{at}"})
        prompt = {"id": f"p{n}", "owner": owner, "name": None, "at": n, "metadata": b"{}", "body": b"{}"}
        connection.execute(prompts.INSERT, prompt)
        connection.execute(prompts.INSERT_VERSION, prompt)
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    yield connection
    connection.close()


@pytest.mark.parametrize("name", _QUERIES)
def test_no_query_scans_a_table(database: sqlite3.Connection, name: str) -> None:
    sql = _QUERIES[name]
    named = {key: value for key, value in _NAMED.items() if f":{key}" in sql}
    steps = "\n".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", named))
    assert "BLOOM FILTER ON" not in steps and "AUTOMATIC" not in steps, steps
    scanned = [line for line in steps.splitlines() if line.startswith("SCAN") and not line.startswith(_SMALL)]
    assert not scanned, steps
    # A page of a list is read in the index's order, never sorted.
    assert "LIST" not in name or "TEMP B-TREE" not in steps, steps


def test_all_of_them_are_looked_at() -> None:
    assert len(_QUERIES) >= 30 and {"conversations.LOCK", "prompts.GET"} <= _QUERIES.keys()


async def test_a_conversation_of_any_length_is_one_query_and_one_write(tmp_path: Path) -> None:
    """A turn locks, reads once, and is written once with its items."""
    stores = await open_sqlite(tmp_path, chain_items=10_000)
    await stores.conversations.create(ALICE, "conv_a", b"{}")
    for turn in range(30):
        await stores.conversations.load(ALICE, "conv_a", holder=f"resp_t{turn}", seconds=100.0)
        await stores.responses.save(in_conversation(f"t{turn}"))
    calls: list[str] = []
    fetch, run = stores.tables.readers.fetch, stores.tables.writer.run

    async def noted_fetch(sql: str, parameters: Any, **how: Any) -> Any:
        calls.append("read")
        return await fetch(sql, parameters, **how)

    async def noted_run(statements: Any, **how: Any) -> Any:
        calls.append("write")
        return await run(statements, **how)

    stores.tables.readers.fetch = noted_fetch  # type: ignore[method-assign]
    stores.tables.writer.run = noted_run  # type: ignore[method-assign, assignment]
    items = await stores.conversations.load(ALICE, "conv_a", holder="resp_next", seconds=100.0)
    await stores.responses.save(in_conversation("next"))
    assert items is not None and len(items) == 90
    assert calls == ["write", "read", "write"]
    await stores.aclose()
