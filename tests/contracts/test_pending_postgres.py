"""The contract of pending blobs on PostgreSQL, directly and behind pgbouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.pending_blobs import KEEP, LET_GO, PostgresPendingRows
from tests.contracts.pending_contract import Keep, LetGo, PendingRowsContract, RunOut
from tests.support.postgres import PATIENT

OVERDUE = "UPDATE pending_blobs SET lease_until = now() - interval '1 second' WHERE lease_until > '-infinity'"


class TestPendingRows(PendingRowsContract):
    @pytest.fixture
    async def database(self, postgres_url: str) -> AsyncIterator[Database]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield database

    @pytest.fixture
    def rows(self, database: Database) -> PostgresPendingRows:
        return PostgresPendingRows(database)

    @pytest.fixture
    async def peer(self, postgres_url: str) -> AsyncIterator[PostgresPendingRows]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield PostgresPendingRows(database)

    @pytest.fixture
    def keep(self, database: Database) -> Keep:
        async def run(key: str) -> bool:
            return bool(await database.write(KEEP, key))

        return run

    @pytest.fixture
    def let_go(self, database: Database) -> LetGo:
        async def run(key: str) -> None:
            await database.write(f"WITH gone (blob) AS (SELECT $1::text) {LET_GO}", key)

        return run

    @pytest.fixture
    def run_out(self, database: Database) -> RunOut:
        async def run() -> None:
            await database.write(OVERDUE)

        return run
