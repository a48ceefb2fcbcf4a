"""What is too old goes, in small pieces, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from antiphon.engine.actions import ResponseRecord
from antiphon.stores import SESSIONS_FILE, Stores, open_stores
from antiphon.stores.retention import KeptFor, Retention
from tests.contracts.store_contract import ALICE
from tests.contracts.store_contract import record as make_record


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    opened = await open_stores(tmp_path, chain_items=1000)
    yield opened
    await opened.aclose()


def record(name: str, at: float, prev: str | None = None) -> ResponseRecord:
    return replace(make_record(name, prev=prev), created_at=at, completed_at=at)


def _retention(stores: Stores, now: float, **kept: float) -> Retention:
    return Retention(stores.retention._writer, KeptFor(**kept), clock=lambda: now)


def _count(folder: Path, table: str) -> int:
    with sqlite3.connect(folder / SESSIONS_FILE) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


async def test_a_chain_goes_as_a_whole_when_its_latest_response_is_old(stores: Stores, tmp_path: Path) -> None:
    await stores.responses.save(record("old", 100))
    await stores.responses.save(record("a", 100))
    await stores.responses.save(record("b", 500, "a"))
    assert await _retention(stores, 1000, responses=600).sweep() == (1, 0, 0)
    assert await stores.responses.get(ALICE, "resp_old") is None
    chain = await stores.responses.load_chain(ALICE, "resp_b")
    assert chain is not None and len(chain.items) == _count(tmp_path, "response_items")
    assert await _retention(stores, 2000, responses=600).sweep() == (1, 0, 0)
    assert _count(tmp_path, "responses") == _count(tmp_path, "response_items") == 0


async def test_more_than_one_piece_goes(stores: Stores, tmp_path: Path) -> None:
    for number in range(120):
        await stores.responses.save(record(f"r{number}", 100))
    assert await _retention(stores, 1000, responses=600).sweep() == (120, 0, 0)
    assert _count(tmp_path, "chains") == 0


async def test_a_conversation_goes_with_its_items_unless_a_response_runs_on_it(stores: Stores, tmp_path: Path) -> None:
    kept = stores.conversations
    for name in ("conv_idle", "conv_busy"):
        await kept.create(ALICE, name, b"{}", ())
    assert await kept.load(ALICE, "conv_busy", holder="resp_x", seconds=3600) == ()
    with sqlite3.connect(tmp_path / SESSIONS_FILE) as connection:
        (updated,) = connection.execute("SELECT max(updated_at) FROM conversations").fetchone()
    connection.close()
    later = updated / 1000 + 700
    assert await _retention(stores, later, conversations=600).sweep() == (0, 1, 0)
    assert await kept.get(ALICE, "conv_idle") is None and await kept.get(ALICE, "conv_busy") is not None


async def test_nothing_goes_where_nothing_is_said(stores: Stores) -> None:
    await stores.responses.save(record("old", 100))
    assert await _retention(stores, 1e9).sweep() == (0, 0, 0)
