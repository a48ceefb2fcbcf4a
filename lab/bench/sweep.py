"""`scripts/bench sweep`: how long the pieces of a large sweep on PostgreSQL take, and what those beside it notice.

Lives here: a server of its own with so many rows that are too old; the sweep, piece by piece; a process's turns beside
it. Not here: that the right things go (`tests/integration/test_postgres_retention.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import asyncpg

from antiphon.config.state import RetentionSettings
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.retention import PostgresPieces
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.retention import Retention
from lab.bench.state_stored import turn
from tests.support.memory import forget_peak, peak
from tests.support.postgres import PostgresServer
from tests.support.postgres_stores import TurnStores, turn_stores

_ITEMS = 3
# Each chain: a response with three items of 2 KiB, which is four rows.
_FILL = f"""
WITH n AS MATERIALIZED (SELECT 'resp_' || n AS id FROM generate_series($1::bigint, $2::bigint) AS n),
chain AS (INSERT INTO chains (id, owner, updated_at) SELECT id, 'a:', 0 FROM n),
made AS (
  INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, own_bytes, status, model, created_at, body)
  SELECT id, 'a:', id, {_ITEMS}, 6144, 7168, 'completed', 'm', 0, convert_to(repeat(md5(id), 32), 'UTF8') FROM n
)
INSERT INTO response_items (response_id, dir, seq, item_id, type, body)
SELECT id, 0, seq, id || seq, 'message', convert_to(repeat(md5(id || seq), 64), 'UTF8')
FROM n CROSS JOIN generate_series(1, {_ITEMS}) AS seq
"""
_AT_ONCE = 10_000


async def _fill(url: str, rows: int) -> None:
    connection = await asyncpg.connect(url)
    chains = rows // (_ITEMS + 1)
    for first in range(1, chains + 1, _AT_ONCE):
        await connection.execute(_FILL, first, min(first + _AT_ONCE - 1, chains))
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def _turns(stores: TurnStores, running: Callable[[], bool]) -> list[float]:
    """Turns one after the other; seconds of each."""
    took: list[float] = []
    prev = None
    while running():
        made = turn("b:turns", prev)
        begun = time.perf_counter()
        await stores.responses.save(made)
        took.append(time.perf_counter() - begun)
        prev = made.id if len(took) % 50 else None
        await asyncio.sleep(0.005)
    return took


class _Timed(Database):
    """Notes how long each transaction takes, and of that its statements, and what comes after them: the commit."""

    took: list[float]
    statements: list[float]
    commits: list[float]

    async def transaction(
        self, work: Callable[[Any], Awaitable[Any]], *, snapshot: bool = False, again: bool = False
    ) -> Any:
        asked = ended = 0.0

        async def timed(connection: Any) -> Any:
            nonlocal asked, ended
            asked = time.perf_counter()
            done = await work(connection)
            ended = time.perf_counter()
            return done

        begun = time.perf_counter()
        try:
            return await super().transaction(timed, snapshot=snapshot, again=again)
        finally:
            over = time.perf_counter()
            self.took.append(over - begun)
            self.statements.append(ended - asked)
            self.commits.append(over - ended)


def _told(what: str, took: list[float]) -> str:
    ordered = sorted(took)
    p99 = ordered[int(len(ordered) * 0.99)]
    return (
        f"{what}: {len(took)}, median {statistics.median(took) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, "
        f"longest {ordered[-1] * 1000:.1f} ms, over 100 ms: {sum(one > 0.1 for one in took)}"
    )


async def _measure(server: PostgresServer, rows: int) -> None:
    url = await server.new_database()
    await _fill(url, rows)
    async with aclosing(turn_stores(url)) as stores, aclosing(_Timed(url)) as database:
        database.took, database.statements, database.commits = [], [], []
        end = time.monotonic() + 10
        alone = await _turns(stores, lambda: time.monotonic() < end)
        retention = Retention(
            PostgresTables(database), PostgresPieces(database), RetentionSettings(responses=1000, events=None)
        )
        forget_peak()
        before = peak()
        begun = time.perf_counter()
        sweeping = asyncio.ensure_future(retention.sweep())
        beside = asyncio.ensure_future(_turns(stores, lambda: not sweeping.done()))
        gone, _, _ = await sweeping
        seconds = time.perf_counter() - begun
        print(
            f"{gone} chains ({gone * (_ITEMS + 1)} rows) in {seconds:.1f} s, {gone * (_ITEMS + 1) / seconds:.0f} rows/s"
        )
        print(_told("pieces", database.took))
        print(_told("of these, statements", database.statements))
        print(_told("of these, commits", database.commits))
        print(_told("turns alone", alone))
        print(_told("turns beside it", await beside))
        print(f"memory of the process: +{(peak() - before) / 1024:.1f} MiB")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="responses and items together (default: a million)")
    rows = parser.parse_args().rows
    server = PostgresServer(durable=True)
    try:
        asyncio.run(_measure(server, rows))
    finally:
        server.close()


if __name__ == "__main__":
    main()
