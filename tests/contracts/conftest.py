"""What the contracts on SQLite share: stores in a folder of the test's own, and a process with a second store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.stores.sqlite.opening import SqliteStores, open_sqlite
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.contracts.store_process import StoreProcess


@pytest.fixture(scope="module")
def process() -> Iterator[StoreProcess]:
    process = StoreProcess()
    yield process
    process.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    async with aclosing(await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def other_stores(stores: SqliteStores, tmp_path: Path) -> AsyncIterator[SqliteStores]:
    """A second set on the same files as `stores`, opened after it."""
    async with aclosing(await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def open_process(stores: SqliteStores, process: StoreProcess, tmp_path: Path) -> AsyncIterator[StoreProcess]:
    """The other process, with a set of stores on the same files as `stores`."""
    await process.call("open", str(tmp_path), CHAIN_ITEMS)
    yield process
    await process.call("aclose")
