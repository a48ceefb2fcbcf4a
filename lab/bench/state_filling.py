"""Many stored responses at once, straight into the tables, as turns of the benchmark would have left them.

Lives here: the rows of chains, for SQLite and PostgreSQL. Not here: what is measured beside them (`state_stored.py`).

Turns of many chains lie between two turns of one, as clients that take turns leave them; ids are spread like random
ones, and can be computed, so that nobody has to remember a million.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass

import asyncpg

from antiphon.stores.sqlite.opening import SESSIONS_FILE
from lab.bench.state_places import Place

OWNERS = 1000
BODY = b'{"text":"%b"}' % (b"instructions and settings " * 34)
ASKED = b'{"content":"%b"}' % (b"what is the weather like in a town by the river " * 17)
SAID = b'{"content":"%b"}' % (b"it rains, and tomorrow it will rain a little less " * 34)

_AT_ONCE = 20_000
"""Responses of one transaction; also how many lie between the first turns of a stretch of chains and their last."""
_SPOKEN = len(ASKED) + len(SAID)


@dataclass(frozen=True)
class Chains:
    """So many chains of so many turns each."""

    count: int
    depth: int

    def owner(self, chain: int) -> str:
        """Whose it is."""
        return f"b:{chain % OWNERS}"

    def response(self, chain: int, turn: int) -> str:
        """The id of one of its turns, which count from 0."""
        return f"resp_{self._spread(chain, turn)}"

    def _spread(self, chain: int, turn: int) -> str:
        return hashlib.sha256(f"{self.depth} {chain} {turn}".encode()).hexdigest()[:48]


_SPREAD = "left(encode(sha256(convert_to($1::bigint || ' ' || c || ' ' || {}, 'UTF8')), 'hex'), 48)"
# $1: depth, $2 and $3: first and last chain, $4: now, $5 to $7: body, asked, said.
_POSTGRES = f"""
WITH n AS MATERIALIZED (
  SELECT c, t, 'b:' || c % {OWNERS} AS owner, {_SPREAD.format("t")} AS hex, {_SPREAD.format("0")} AS chain,
         CASE WHEN t > 0 THEN {_SPREAD.format("t - 1")} END AS prev
  FROM generate_series(0, $1::bigint - 1) AS t, generate_series($2::bigint, $3::bigint) AS c ORDER BY t, c
),
chain AS (
  INSERT INTO chains (id, owner, updated_at) SELECT 'resp_' || chain, owner, $4::bigint FROM n WHERE t = 0
),
made AS (
  INSERT INTO responses (id, owner, chain_id, prev_id, history_items, history_bytes, own_bytes, status, model,
                         created_at, completed_at, input_tokens, output_tokens, body)
  SELECT 'resp_' || hex, owner, 'resp_' || chain, 'resp_' || prev, (t + 1) * 2, (t + 1) * {_SPOKEN},
         {_SPOKEN + len(BODY)}, 'completed', 'model', $4, $4, 100, 100, $5::bytea
  FROM n ORDER BY t, c
)
INSERT INTO response_items (response_id, dir, seq, item_id, type, body)
SELECT 'resp_' || hex, dir, 0, 'msg_' || dir || substr(hex, 2), 'message', CASE dir WHEN 0 THEN $6::bytea ELSE $7 END
FROM n CROSS JOIN generate_series(0, 1) AS dir ORDER BY t, c, dir
"""
_COUNT = "INSERT INTO owner_bytes (owner, slot, bytes) SELECT owner, 0, sum(own_bytes) FROM responses GROUP BY owner"


async def fill(place: Place, *kinds: Chains) -> None:
    """Store these chains where there is a schema and nothing else yet."""
    if place.url.startswith("sqlite:"):
        _fill_sqlite(place, kinds)
    else:
        await _fill_postgres(place, kinds)


def _stretches(chains: Chains) -> list[range]:
    step = max(1, _AT_ONCE // chains.depth)
    return [range(first, min(first + step, chains.count)) for first in range(0, chains.count, step)]


async def _fill_postgres(place: Place, kinds: tuple[Chains, ...]) -> None:
    connection = await asyncpg.connect(place.url, statement_cache_size=0)
    now = int(time.time() * 1000)
    try:
        for kind in kinds:
            for stretch in _stretches(kind):
                given = kind.depth, stretch.start, stretch.stop - 1, now, BODY, ASKED, SAID
                async with connection.transaction():
                    # What the database would check and count of each row is right by construction, and counted below.
                    await connection.execute("SET LOCAL session_replication_role = replica")
                    await connection.execute("SET LOCAL synchronous_commit = off")
                    await connection.execute(_POSTGRES, *given, timeout=600)
        for text in (_COUNT, "VACUUM ANALYZE", "CHECKPOINT"):
            await connection.execute(text, timeout=600)
    finally:
        await connection.close()


def _fill_sqlite(place: Place, kinds: tuple[Chains, ...]) -> None:
    now = int(time.time() * 1000)
    with closing(sqlite3.connect(place.folder / SESSIONS_FILE)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -1000000")  # KiB
        for kind in kinds:
            for stretch in _stretches(kind):
                turns = [(chain, turn) for turn in range(kind.depth) for chain in stretch]
                with database:
                    _insert(database, kind, turns, now)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _insert(database: sqlite3.Connection, kind: Chains, turns: list[tuple[int, int]], now: int) -> None:
    first = [(kind.response(chain, 0), kind.owner(chain), now) for chain, turn in turns if not turn]
    database.executemany("INSERT INTO chains (id, owner, updated_at) VALUES (?, ?, ?)", first)
    database.executemany(
        "INSERT INTO responses (id, owner, chain_id, prev_id, history_items, history_bytes, own_bytes, status, model,"
        " created_at, completed_at, input_tokens, output_tokens, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'completed', 'model', ?, ?, 100, 100, ?)",
        [
            (
                kind.response(chain, turn),
                kind.owner(chain),
                kind.response(chain, 0),
                kind.response(chain, turn - 1) if turn else None,
                (turn + 1) * 2,
                (turn + 1) * _SPOKEN,
                _SPOKEN + len(BODY),
                now,
                now,
                BODY,
            )
            for chain, turn in turns
        ],
    )
    database.executemany(
        "INSERT INTO response_items (response_id, dir, seq, item_id, type, body) VALUES (?, ?, 0, ?, 'message', ?)",
        [
            (made := kind.response(chain, turn), side, f"msg_{side}{made.removeprefix('resp_')[1:]}", body)
            for chain, turn in turns
            for side, body in enumerate((ASKED, SAID))
        ],
    )
