"""Runs the contract of pending blobs on PostgreSQL, directly and behind pgbouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.blobs.pending import KEEP, LET_GO, PendingRows
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.tables import RowsMissing, Statement
from tests.contracts.pending_contract import Keep, LetGo, PendingRowsContract, RunOut
from tests.support.postgres import PATIENT

# The shared contracts already test PostgreSQL in the quick tier.
pytestmark = pytest.mark.full

OVERDUE = "UPDATE pending_blobs SET lease_until = now() - interval '1 second' WHERE lease_until > '-infinity'"


class TestPendingRows(PendingRowsContract):
    @pytest.fixture
    async def database(self, postgres_url: str) -> AsyncIterator[Database]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield database

    @pytest.fixture
    def rows(self, database: Database) -> PendingRows:
        return PendingRows(PostgresTables(database))

    @pytest.fixture
    async def peer(self, postgres_url: str) -> AsyncIterator[PendingRows]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield PendingRows(PostgresTables(database))

    @pytest.fixture
    def keep(self, database: Database) -> Keep:
        async def run(key: str) -> bool:
            try:
                await PostgresTables(database).run([Statement(KEEP, {"blob": key}, rows=1)])
            except RowsMissing:
                return False
            return True

        return run

    @pytest.fixture
    def let_go(self, database: Database) -> LetGo:
        async def run(key: str) -> None:
            await PostgresTables(database).run([Statement(LET_GO, {"blob": key})])

        return run

    @pytest.fixture
    def run_out(self, database: Database) -> RunOut:
        async def run() -> None:
            await database.write(OVERDUE)

        return run
