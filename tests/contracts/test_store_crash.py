"""A process that is killed while it saves loses nothing it acknowledged and leaves nothing half written."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from antiphon.stores import SESSIONS_FILE, open_store
from tests.contracts import store_crash_child
from tests.contracts.store_process import child_environment

_ROUNDS = 10
_UNFINISHED = """
SELECT r.id FROM responses r
WHERE CAST(CAST(r.body AS TEXT) AS INTEGER) <> (SELECT count(*) FROM response_items i WHERE i.response_id = r.id)
   OR NOT EXISTS (SELECT 1 FROM chains c WHERE c.id = r.chain_id)
   OR r.prev_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM responses p WHERE p.id = r.prev_id)
"""


def killed_while_saving(data: Path, prefix: str, acknowledgements: int) -> list[str]:
    """Run a child, `kill -9` it after so many acknowledgements; every id it acknowledged."""
    child = subprocess.Popen(
        [sys.executable, store_crash_child.__file__, str(data), prefix],
        stdout=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout is not None
    with child.stdout:
        lines = [child.stdout.readline() for _ in range(acknowledgements)]
        child.kill()
        lines += child.stdout.readlines()
    assert child.wait(timeout=20) == -9
    return [line.strip().decode() for line in lines if line.endswith(b"\n")]


@pytest.mark.slow
async def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    chance = random.Random(20)  # where the kill falls within a commit is up to the machine all the same
    acknowledged: set[str] = set()
    for number in range(_ROUNDS):
        new = killed_while_saving(tmp_path, f"r{number}", chance.randrange(1, 600))
        assert new
        acknowledged.update(new)

        async with aclosing(await open_store(tmp_path, chain_items=1_000_000)) as store:
            for response_id in (new[0], new[-1]):
                assert await store.get("o", response_id) is not None
                assert await store.load_chain("o", response_id) is not None
            await store.ping()

        with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as database:
            present = {row[0] for row in database.execute("SELECT id FROM responses")}
            assert acknowledged <= present
            assert database.execute(_UNFINISHED).fetchall() == []
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
