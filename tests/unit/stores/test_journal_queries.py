"""How SQLite executes the sums of the journal: by an index alone, so that the sums of 100,000 requests are fast."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from antiphon.stores.journal import JournalStore
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from antiphon.stores.sqlite.tables import sqlite_sql


class Plans:
    """Tables that explain each query, and return no rows."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.seen: list[str] = []

    async def fetch(self, sql: str, named: Mapping[str, Any]) -> list[Any]:
        if "request_batches" in sql:
            # There is no batch to move.
            return []
        rows = self._database.execute(f"EXPLAIN QUERY PLAN {sqlite_sql(sql)}", {**named, "now_ms": 0})
        self.seen.append("; ".join(str(row[3]) for row in rows))
        return []


@pytest.fixture
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    connection = connect_writer(tmp_path_factory.mktemp("plans") / "state.db")
    migrate(connection, packaged_steps("migrations"))
    yield Plans(connection)
    connection.close()


@pytest.mark.parametrize("owner", ["", "n:anna"])
@pytest.mark.parametrize("since", [0.0, 1e9])
async def test_sums_read_an_index_and_no_row(plans: Plans, owner: str, since: float) -> None:
    journal = JournalStore(cast(Any, plans))
    await journal.sums(owner, since=since)
    await journal.sums(owner, since=since, by="owner")
    await journal.slots(owner, since=since, seconds=60.0)
    by_model, _, by_owner, _, slots = plans.seen
    for plan in (by_model, by_owner, slots):
        assert "COVERING INDEX" in plan, plan
