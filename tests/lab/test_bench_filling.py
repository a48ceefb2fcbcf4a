"""The rows that benchmarks put into the tables are those that turns leave."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from antiphon.stores.sqlite.opening import SESSIONS_FILE
from lab.bench.state_filling import Chains, fill
from lab.bench.state_places import Place
from lab.bench.state_stored import turn

_KIND = Chains(count=3, depth=4)
_OWNER = "b:of-turns"
_BOTH = _KIND.owner(1), _OWNER
# What is the same for every chain of as many turns: all but ids, owners and times.
_CHAIN = """
SELECT r.history_items, r.history_bytes, r.own_bytes, r.status, r.model, r.input_tokens, r.output_tokens, r.body,
       r.prev_id IS NULL AS first, r.background, i.dir, i.seq, i.type, length(i.item_id) AS id_length, i.body AS item
FROM responses r JOIN response_items i ON i.response_id = r.id
WHERE r.owner = '{owner}' ORDER BY r.history_items, i.dir, i.seq
"""
_OF_A_CHAIN = (
    "SELECT bool_and(EXISTS (SELECT FROM chains c WHERE c.id = chain_id AND c.owner = r.owner)) FROM responses r"
)
_COUNTED = "SELECT (SELECT sum(bytes) FROM owner_bytes) = (SELECT sum(own_bytes) FROM responses)"


async def _chain_of_turns(place: Place) -> None:
    async with place.responses() as store:
        previous = None
        for _ in range(_KIND.depth):
            made = turn(_OWNER, previous)
            await store.save(made)
            previous = made.id


async def _can_be_continued(place: Place) -> None:
    async with place.responses() as store:
        for chain in range(_KIND.count):
            owner, last = _KIND.owner(chain), _KIND.response(chain, _KIND.depth - 1)
            found = await store.load_chain(owner, last)
            assert found is not None and len(found.items) == 2 * _KIND.depth
            await store.save(turn(owner, last))


def _same(filled: list[Any], turns: list[Any]) -> None:
    assert filled == turns and len(filled) == 2 * _KIND.depth


async def test_rows_in_sqlite(tmp_path: Path) -> None:
    place = Place("SQLite", f"sqlite:{tmp_path}", tmp_path)
    async with place.responses():
        pass
    await fill(place, _KIND)
    await _chain_of_turns(place)
    with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as database:
        _same(*[database.execute(_CHAIN.format(owner=owner)).fetchall() for owner in _BOTH])
        assert database.execute(_COUNTED).fetchone() == (1,)
        assert not database.execute("PRAGMA foreign_key_check").fetchall()
    await _can_be_continued(place)


async def test_rows_in_postgresql(postgres_url: str, tmp_path: Path) -> None:
    place = Place("PostgreSQL", postgres_url, tmp_path)
    await fill(place, _KIND)
    await _chain_of_turns(place)
    connection = await asyncpg.connect(postgres_url)
    try:
        _same(*[await connection.fetch(_CHAIN.format(owner=owner)) for owner in _BOTH])
        assert await connection.fetchval(_COUNTED)
        assert not await connection.fetchval(
            "SELECT count(*) FROM chains c WHERE c.id NOT IN (SELECT id FROM responses)"
        )
    finally:
        await connection.close()
    await _can_be_continued(place)
