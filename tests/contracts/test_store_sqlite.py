"""The store contract on SQLite: one store, two stores on one file, and a second store in another process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from antiphon.engine.ports import ResponseStore
from antiphon.stores import SESSIONS_FILE, open_store
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS, ResponseStoreContract, record
from tests.contracts.store_process import ProcessStore, StoreProcess


@pytest.fixture(scope="module")
def process() -> Iterator[StoreProcess]:
    process = StoreProcess()
    yield process
    process.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ResponseStore]:
    opened = await open_store(tmp_path, chain_items=CHAIN_ITEMS)
    yield opened
    await opened.aclose()


class TestSqliteStore(ResponseStoreContract):
    @pytest.fixture
    def peer(self, store: ResponseStore) -> ResponseStore:
        return store


class TestTwoSqliteStores(ResponseStoreContract):
    @pytest.fixture
    async def peer(self, store: ResponseStore, tmp_path: Path) -> AsyncIterator[ResponseStore]:
        opened = await open_store(tmp_path, chain_items=CHAIN_ITEMS)
        yield opened
        await opened.aclose()


class TestSqliteStoreInTwoProcesses(ResponseStoreContract):
    @pytest.fixture
    async def peer(self, store: ResponseStore, process: StoreProcess, tmp_path: Path) -> AsyncIterator[ProcessStore]:
        await process.call("open", str(tmp_path), CHAIN_ITEMS)
        yield ProcessStore(process)
        await process.call("aclose")

    async def test_both_processes_write_at_the_same_time(
        self, store: ResponseStore, peer: ProcessStore, tmp_path: Path
    ) -> None:
        await store.save(record("root"))

        async def here() -> None:
            for n in range(0, 300, 30):
                await asyncio.gather(*[store.save(record(f"here{m}", prev="root")) for m in range(n, n + 30)])

        async def there() -> None:
            for n in range(0, 300, 30):
                calls = [("save", (record(f"there{m}", prev="root"),)) for m in range(n, n + 30)]
                assert await peer.process.batch(calls) == [None] * 30

        await asyncio.gather(here(), there())
        database = sqlite3.connect(tmp_path / SESSIONS_FILE)
        assert database.execute("SELECT count(*), count(DISTINCT chain_id) FROM responses").fetchone() == (601, 1)
        assert database.execute("SELECT count(*) FROM response_items").fetchone() == (601 * 3,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
        for where in ("here", "there"):
            for reader in (store, peer):
                assert await reader.load_chain(ALICE, f"resp_{where}299") is not None
