"""Tests closed stores on SQLite, and two processes that write concurrently."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from antiphon.engine.ports.state import PageQuery
from antiphon.errors import StoreError
from antiphon.stores.sqlite.backend import SESSIONS_FILE, SqliteStores, open_sqlite
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS, record
from tests.contracts.store_process import ProcessStores, StoreProcess


async def test_closed_stores_refuse_and_may_be_closed_again(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
    store = stores.responses
    await store.save(record("a"))
    await stores.aclose()
    await stores.aclose()
    for call in (
        store.save(record("b")),
        store.get(ALICE, "resp_a"),
        store.load_chain(ALICE, "resp_a"),
        store.load_compared(ALICE, "resp_a"),
        store.load_items(ALICE, ("msg_a_in0",)),
        store.input_items(ALICE, "resp_a", PageQuery()),
        store.delete(ALICE, "resp_a"),
        store.ping(),
    ):
        with pytest.raises(StoreError):
            await call


async def test_both_processes_write_at_the_same_time(
    stores: SqliteStores, open_process: StoreProcess, tmp_path: Path
) -> None:
    store, peer = stores.responses, ProcessStores(open_process).responses
    await store.save(record("root"))

    async def here() -> None:
        for n in range(0, 300, 30):
            await asyncio.gather(*[store.save(record(f"here{m}", prev="root")) for m in range(n, n + 30)])

    async def there() -> None:
        for n in range(0, 300, 30):
            calls = [("responses.save", (record(f"there{m}", prev="root"),)) for m in range(n, n + 30)]
            assert await open_process.batch(calls) == [None] * 30

    await asyncio.gather(here(), there())
    database = sqlite3.connect(tmp_path / SESSIONS_FILE)
    assert database.execute("SELECT count(*), count(DISTINCT chain_id) FROM responses").fetchone() == (601, 1)
    assert database.execute("SELECT count(*) FROM response_items").fetchone() == (601 * 3,)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    for where in ("here", "there"):
        for reader in (store, peer):
            assert await reader.load_chain(ALICE, f"resp_{where}299") is not None
