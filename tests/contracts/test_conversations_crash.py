"""Kills a process during turns, and checks that every conversation has only whole turns and is not locked."""

from __future__ import annotations

import random
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from antiphon.stores.sqlite.backend import SESSIONS_FILE, open_sqlite
from tests.contracts import conversation_crash_child
from tests.contracts.conversation_crash_child import CONVERSATIONS, OWNER
from tests.contracts.killed import killed_at_work

_ROUNDS = 4
# A conversation has all items of a response in their order, or, if the response failed, none. Every item's response
# exists.
_TORN = """
SELECT r.id FROM responses r
WHERE (SELECT count(*) FROM conversation_items i WHERE i.response_id = r.id)
      <> CASE r.status WHEN 'failed' THEN 0 ELSE CAST(CAST(r.body AS TEXT) AS INTEGER) END
   OR (SELECT min(i.pos) FROM conversation_items i WHERE i.response_id = r.id) <> r.conversation_pos
   OR (SELECT max(i.pos) - min(i.pos) + 1 - count(*) FROM conversation_items i WHERE i.response_id = r.id) <> 0
   OR r.conversation_id IS NULL OR r.conversation_pos IS NULL
UNION ALL
SELECT i.item_id FROM conversation_items i WHERE NOT EXISTS (SELECT 1 FROM responses r WHERE r.id = i.response_id)
UNION ALL
SELECT c.id FROM conversations c WHERE c.next_pos - c.created_at * 1000 <> (
  SELECT count(*) FROM conversation_items i WHERE i.owner = c.owner AND i.conversation_id = c.id
)
"""


@pytest.mark.slow
async def test_kill_9_leaves_whole_turns_and_no_lock(tmp_path: Path) -> None:
    chance = random.Random(20)
    acknowledged: set[str] = set()
    for number in range(_ROUNDS):
        new = killed_at_work(conversation_crash_child, tmp_path, f"r{number}", chance.randrange(1, 400))
        assert new
        acknowledged.update(new)
        async with aclosing(await open_sqlite(tmp_path, chain_items=1_000_000)) as stores:
            for one in range(CONVERSATIONS):
                # The holder is dead and its lease has expired, so another response can lock the conversation and read
                # its history.
                holder = f"resp_after{number}_{one}"
                found = await stores.conversations.load(
                    OWNER, f"conv_{one}", holder=holder, seconds=1000.0, create=True
                )
                assert found is not None
                await stores.conversations.release(holder)
        with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as database:
            assert acknowledged <= {row[0] for row in database.execute("SELECT id FROM responses")}
            assert database.execute(_TORN).fetchall() == []
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
