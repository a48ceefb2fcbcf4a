"""What the contracts on SQLite share: stores in a folder of the test's own, and a process with a second store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.stores import Stores, open_stores
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.contracts.store_process import StoreProcess


@pytest.fixture(scope="module")
def process() -> Iterator[StoreProcess]:
    process = StoreProcess()
    yield process
    process.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with aclosing(await open_stores(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def other_stores(stores: Stores, tmp_path: Path) -> AsyncIterator[Stores]:
    """A second set on the same files as `stores`, opened after it."""
    async with aclosing(await open_stores(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def open_process(stores: Stores, process: StoreProcess, tmp_path: Path) -> AsyncIterator[StoreProcess]:
    """The other process, with a set of stores on the same files as `stores`."""
    await process.call("open", str(tmp_path), CHAIN_ITEMS)
    yield process
    await process.call("aclose")
