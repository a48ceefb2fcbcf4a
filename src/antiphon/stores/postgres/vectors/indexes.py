"""Creates and drops vector indexes (HNSW) for large stores.

Lives here: which stores have one, and making and dropping them while everything else goes on. Not here: searching with
them (`chunk_index.py`).

An index over the vectors of all stores would find those of other stores first, and the fewer of the nearest are the
searched store's the less it would find of it. So a store whose vectors are too many to be compared one by one has an
index of its own (HNSW, pgvector), and a small one has none and pays nothing for it.

An index takes minutes to make. It is made by a task of its own on a connection of its own, in such a way that others
may write meanwhile (`CONCURRENTLY`); PostgreSQL itself lets one of them be made at a time. Until it is there searches
compare one by one. What a process that died has left half-made is dropped and made again.

Invariant: nothing waits for an index, and without one every search is right.
"""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from antiphon.errors import StoreError
from antiphon.stores.postgres.connecting import Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import connecting_failed, store_error

_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_log = structlog.get_logger(__name__)

EXACT_VECTORS = 20_000
"""So many vectors are compared one by one within tens of milliseconds."""
WIDEST = 4_000
"""What pgvector's index takes of 16-bit numbers; wider vectors are always compared one by one."""

_WHAT = "vector indexes"
_EVERY = 60
_CONNECT_SECONDS = 5.0

# Of all processes one looks.
DUE = f"""
INSERT INTO sweeps AS s (what, due_at) VALUES ('{_WHAT}', now() + make_interval(secs => $1))
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at WHERE s.due_at <= now() RETURNING 1
"""
THERE = "SELECT to_regclass('chunk_vectors') IS NOT NULL"
WANTED = """
SELECT f.store_number, f.vector_width FROM vector_files f JOIN vector_stores s ON s.number = f.store_number
WHERE f.status = 'completed' AND f.vector_width <= $2 AND s.owner IS NOT NULL
GROUP BY 1, 2 HAVING sum(f.chunks) > $1
"""
# Those that are being made are left alone, whoever makes them.
KNOWN = r"""
SELECT c.relname AS name, i.indisvalid AS valid, p.pid IS NOT NULL AS being_made
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid
WHERE i.indrelid = 'chunk_vectors'::regclass AND c.relname ~ '^chunk_vectors_\d+_\d+$'
"""
MAKE = """
CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON chunk_vectors
USING hnsw ((vector::halfvec({width})) halfvec_ip_ops) WHERE store_number = {store} AND width = {width}
"""
DROP = "DROP INDEX CONCURRENTLY IF EXISTS {name}"


def index_name(store: int, width: int) -> str:
    """What the index of a store over vectors of this width is called."""
    return f"chunk_vectors_{store:d}_{width:d}"


class VectorIndexes:
    """Looks after the indexes. `url`: where one is made, directly at the server, where that is not what requests
    use."""

    def __init__(self, database: Database, url: str, *, exact: int = EXACT_VECTORS, every: float = _EVERY) -> None:
        """`exact`: the most vectors that are compared one by one; `every`: seconds between looks, of all processes."""
        self._database = database
        self._url = url
        self.exact = exact
        self._every = every
        self._next = 0.0
        self._task: asyncio.Task[None] | None = None
        self._making: Connection | None = None
        self._closed = False

    def look(self) -> None:
        """See after a while whether there is an index to make; returns at once."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next and (self._task is None or self._task.done()):
            self._next = loop.time() + self._every
            self._task = loop.create_task(self._look())

    async def made(self) -> None:
        """Wait until what is being made here is made."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def aclose(self) -> None:
        """Stop looking. An index that is being made is made all the same: the server does not ask for its client."""
        if self._task is None:
            return
        self._closed = True
        if self._making is not None:
            # No cancellation: the driver would have the server stop.
            self._making.terminate()
        else:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _look(self) -> None:
        try:
            if await self._database.write(DUE, float(self._every), again=True):
                await self._work(*await self._wanted())
        except StoreError as error:
            if not self._closed:
                _log.warning("vector_indexes_not_made", error=str(error))
        except Exception:
            _log.error("vector_indexes_failed", exc_info=True)

    async def _wanted(self) -> tuple[list[str], dict[str, str]]:
        """The names of indexes to drop, and the statements that make others."""
        if not (await self._database.fetch(THERE))[0][0]:
            return [], {}
        wanted = {
            index_name(store, width): MAKE.format(name=index_name(store, width), store=store, width=width)
            for store, width in await self._database.fetch(WANTED, self.exact, WIDEST)
        }
        known = await self._database.fetch(KNOWN)
        if any(row["being_made"] for row in known):
            return [], {}
        good = {row["name"] for row in known if row["valid"]}
        drop = [row["name"] for row in known if row["name"] not in wanted or not row["valid"]]
        return drop, {name: statement for name, statement in wanted.items() if name not in good}

    async def _work(self, drop: list[str], make: dict[str, str]) -> None:
        if not (drop or make):
            return
        connection = self._making = await self._connect()
        try:
            for name in drop:
                await connection.execute(DROP.format(name=name))
            for name, statement in make.items():
                begun = asyncio.get_running_loop().time()
                await connection.execute(statement)
                seconds = round(asyncio.get_running_loop().time() - begun, 3)
                _log.info("vector_index_made", index=name, seconds=seconds)
        except _FAILURES as error:
            raise store_error("Making an index of vectors", error) from error
        finally:
            self._making = None
            connection.terminate()

    async def _connect(self) -> Connection:
        """A connection for work that takes minutes, whatever limits the role has; those of a pooler's stay."""
        try:
            try:
                return await connect(self._url, _CONNECT_SECONDS, statement_timeout="0", lock_timeout="0")
            except asyncpg.ProtocolViolationError:
                return await connect(self._url, _CONNECT_SECONDS)
        except _FAILURES as error:
            raise connecting_failed(error, self._database.setting_of(self._url)) from error
