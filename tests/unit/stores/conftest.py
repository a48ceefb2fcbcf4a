"""What tests of stores share: stores in a folder of the test's own, and a look at what was left open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from tests.support.left_open import left_open


@pytest.fixture
def nothing_open() -> Iterator[None]:
    before = left_open()
    yield
    for thread in left_open()[1] - before[1]:
        # What it was told last may be to end: that takes a moment.
        thread.join(30)
    assert left_open() == before


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    async with aclosing(await open_sqlite(tmp_path, chain_items=100)) as opened:
        yield opened
