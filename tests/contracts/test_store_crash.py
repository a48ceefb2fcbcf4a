"""Kills a process while it saves responses, and checks that no acknowledged response is lost and none is incomplete."""

from __future__ import annotations

import random
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from antiphon.stores.sqlite.backend import SESSIONS_FILE, open_sqlite
from tests.contracts import store_crash_child
from tests.contracts.killed import killed_at_work

_ROUNDS = 10
_UNFINISHED = """
SELECT r.id FROM responses r
WHERE CAST(CAST(r.body AS TEXT) AS INTEGER) <> (SELECT count(*) FROM response_items i WHERE i.response_id = r.id)
   OR NOT EXISTS (SELECT 1 FROM chains c WHERE c.id = r.chain_id)
   OR r.prev_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM responses p WHERE p.id = r.prev_id)
"""


@pytest.mark.slow
async def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    chance = random.Random(20)  # The moment of the kill within a commit is still random.
    acknowledged: set[str] = set()
    for number in range(_ROUNDS):
        new = killed_at_work(store_crash_child, tmp_path, f"r{number}", chance.randrange(1, 600))
        assert new
        acknowledged.update(new)

        async with aclosing(await open_sqlite(tmp_path, chain_items=1_000_000)) as stores:
            for response_id in (new[0], new[-1]):
                assert await stores.responses.get("o", response_id) is not None
                assert await stores.responses.load_chain("o", response_id) is not None
            await stores.responses.ping()

        with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as database:
            present = {row[0] for row in database.execute("SELECT id FROM responses")}
            assert acknowledged <= present
            assert database.execute(_UNFINISHED).fetchall() == []
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
