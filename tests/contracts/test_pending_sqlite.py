"""Runs the contract of pending blobs on SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.stores.blobs.pending import KEEP, LET_GO, UPLOAD_LEASE_SECONDS
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from antiphon.stores.sqlite.files import SqlitePendingRows
from antiphon.stores.tables import RowsMissing, Statement
from tests.contracts.pending_contract import Keep, LetGo, PendingRowsContract, RunOut
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.contracts.test_files_disk import run_out as let_run_out


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
    yield opened
    await opened.aclose()


class TestPendingRows(PendingRowsContract):
    @pytest.fixture
    def rows(self, stores: SqliteStores) -> SqlitePendingRows:
        return SqlitePendingRows(stores.tables, UPLOAD_LEASE_SECONDS)

    @pytest.fixture
    async def peer(self, stores: SqliteStores, tmp_path: Path) -> AsyncIterator[SqlitePendingRows]:
        opened = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
        yield SqlitePendingRows(opened.tables, UPLOAD_LEASE_SECONDS)
        await opened.aclose()

    @pytest.fixture
    def keep(self, stores: SqliteStores) -> Keep:
        async def run(key: str) -> bool:
            try:
                await stores.tables.run([Statement(KEEP, {"blob": key}, rows=1)])
            except RowsMissing:
                return False
            return True

        return run

    @pytest.fixture
    def let_go(self, stores: SqliteStores) -> LetGo:
        async def run(key: str) -> None:
            await stores.tables.run([Statement(LET_GO, {"blob": key})])

        return run

    @pytest.fixture
    def run_out(self, stores: SqliteStores) -> RunOut:
        return lambda: let_run_out(stores)
