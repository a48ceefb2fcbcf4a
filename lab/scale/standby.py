"""Runs a PostgreSQL primary and its standby, and the three methods by which clients find the current primary.

Lives here: the pair of servers, the promotion, and the switch of each method. Not here: the run that uses them
(`failover.py`).

An operator can use each of these methods. The URL names both servers, or pgbouncer reloads changed settings, or an
address moves from one machine to the other.

Invariant: with `synchronous`, the run kills a primary only while its standby has all acknowledged transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg

from lab.scale.hole import hole
from tests.support.postgres import Pooler, PostgresServer

WAYS = ("hosts", "pgbouncer", "address")
_SECONDS = 60.0
_FOLLOWED = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"


class Pair:
    """Two servers: `primary`, and `standby`, which replicates it. `start` starts both."""

    def __init__(self, *, synchronous: bool) -> None:
        self._synchronous = synchronous
        self.primary = PostgresServer(durable=True)
        self.standby = self.primary
        self.database = ""

    async def start(self) -> None:
        """Create the database and the standby."""
        self.database = (await self.primary.new_database()).rsplit("/", 1)[1]
        self.standby = await asyncio.to_thread(PostgresServer, durable=True, leader=self.primary)
        await self._followed()

    @property
    def url(self) -> str:
        """The URL that names both servers."""
        places = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://postgres@{places}/{self.database}?target_session_attrs=read-write"

    async def change(self) -> None:
        """Promote the standby in place of the dead primary."""
        await asyncio.to_thread(self.standby.promote)
        self.primary, self.standby = self.standby, self.primary

    async def rejoin(self) -> None:
        """Make the old primary, which is stopped, the new standby."""
        await asyncio.to_thread(self.standby.follow, self.primary)
        await self._followed()

    def close(self) -> None:
        """Stop both servers."""
        self.primary.close()
        if self.standby is not self.primary:
            self.standby.close()

    async def _followed(self) -> None:
        """Wait until the standby receives all writes. From then on the primary acknowledges no transaction that the
        standby lacks."""
        if self._synchronous:
            await self.primary.statement("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await self.primary.statement("SELECT pg_reload_conf()")
        wanted = "sync" if self._synchronous else "async"
        async with asyncio.timeout(_SECONDS):
            connection = await asyncpg.connect(self.primary.url(), statement_cache_size=0)
            try:
                while await connection.fetchval(_FOLLOWED) != wanted:
                    await asyncio.sleep(0.02)
            finally:
                await connection.close()


@asynccontextmanager
async def way_to(pair: Pair, way: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The URL for `state.url` by this method, and the function that switches it to the new primary."""
    if way == "hosts":
        yield pair.url, lambda: None
    elif way == "pgbouncer":
        pooler = Pooler(pair.primary.port)
        try:
            yield pooler.url(f"/{pair.database}"), lambda: pooler.lead_to(pair.primary.port)
        finally:
            pooler.close()
    else:
        async with hole(pair.primary.port) as address:
            url = f"postgresql://postgres@127.0.0.1:{address.port}/{pair.database}"
            yield url, lambda: address.lead_to(pair.primary.port)
