"""Creates the table of vectors when a process first needs vectors, and its indexes (HNSW) for large vector stores.

Lives here: the creation of the table and of the pgvector extension, the advice after a failure, and the text form of a
vector. This module also chooses the vector stores that need an index, and creates and drops indexes while requests run.
Not here: searches that use the table and the indexes (`chunk_index.py`).

Word search needs no extension. So a database without pgvector supports vector stores, as long as the operator
configures no embeddings server.

In one index for all vector stores, a search would mostly find vectors of other vector stores. The search would miss the
vectors of a small vector store. So each vector store with too many vectors for an exact comparison has a separate index
(HNSW, pgvector). A small vector store needs no index.

The creation of an index takes minutes. A background task creates indexes one after the other on a separate connection.
`CREATE INDEX CONCURRENTLY` does not block writes. Until the index of a vector store exists, searches compare all
vectors of the vector store. If a process dies while it creates an index, another process drops the unfinished index and
creates it again.

Invariants: after the method `there` has returned, the table exists with this build's schema. No request waits for the
creation of an index, and every search is correct without an index.
"""

from __future__ import annotations

import asyncio
import struct

import asyncpg
import structlog

from antiphon.errors import StoreError
from antiphon.stores.postgres.connecting import Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import code_of, connecting_failed, store_error
from antiphon.stores.postgres.migrate import VECTOR_SCHEMA, VECTOR_STEPS, migrate, packaged_steps

OLDEST = (0, 8)
EXTENSION = "vector"
_LIMITS = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '4s'"
# Serializes processes that create the extension concurrently.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('antiphon vector', 0))"
_LOOK = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = $1) AS installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = $1) AS available,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
         OR has_database_privilege(current_database(), 'CREATE') AS may_create
"""

_NOT_INSTALLED = frozenset({"0A000", "58P01"})
_NO_RIGHT = "42501"
_OR_WORDS = "or unset embeddings.url: vector stores then search by words."

_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_log = structlog.get_logger(__name__)

EXACT_VECTORS = 20_000
"""The maximum number of vectors that a search compares one by one. The comparison takes tens of milliseconds."""
WIDEST = 4_000
"""The maximum number of components of a 16-bit vector in pgvector's index. Searches always compare wider vectors one by
one."""

_WHAT = "vector indexes"
_EVERY = 60
_CONNECT_SECONDS = 5.0

# Reserves the check for missing indexes, so that only one process per interval checks.
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
# Selects the existing vector indexes, and whether any process is creating them now.
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


class VectorTable:
    """The table of vectors in this database. `there` creates the table, and does nothing after its first success."""

    def __init__(self, database: Database, *, extension: str = EXTENSION, oldest: tuple[int, int] = OLDEST) -> None:
        """`extension`: the name of pgvector's extension. `oldest`: the oldest usable version of the extension."""
        self.database = database
        self._extension = extension
        self._oldest = oldest
        self._there = False

    async def there(self) -> None:
        """Create the table of vectors and the pgvector extension, unless they exist. Raises `StoreError` with
        advice."""
        if self._there:
            return
        if await self._installed() is None:
            await self._install()
        _check_version(await self._installed() or "", self._oldest)
        await migrate(self.database, packaged_steps(VECTOR_STEPS), VECTOR_SCHEMA)
        self._there = True

    async def check(self) -> None:
        """Check whether `there` can succeed, without creating the table or the extension. Raises the same `StoreError`
        as `there`."""
        (found,) = await self.database.fetch(_LOOK, self._extension)
        if found["installed"] is None and found["available"] is None:
            raise _not_installed()
        if found["installed"] is None and not found["may_create"]:
            raise _no_right()
        _check_version(found["installed"] or found["available"], self._oldest)

    async def _installed(self) -> str | None:
        (found,) = await self.database.fetch(_LOOK, self._extension)
        return None if found["installed"] is None else str(found["installed"])

    async def _install(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            await connection.execute(_LIMITS)
            await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {self._extension}")

        try:
            await self.database.transaction(work)
        except StoreError as error:
            code = code_of(error.__cause__)
            if code in _NOT_INSTALLED:
                raise _not_installed() from error
            if code == _NO_RIGHT:
                raise _no_right() from error
            raise


def _check_version(version: str, oldest: tuple[int, int]) -> None:
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest:
        raise StoreError(
            f"PostgreSQL: the extension 'vector' is {version} here, and embeddings need {'.'.join(map(str, oldest))} "
            "or newer. Install a newer pgvector, and have an administrator run `ALTER EXTENSION vector UPDATE` in "
            f"this database, {_OR_WORDS}"
        )


def _not_installed() -> StoreError:
    return StoreError(
        "PostgreSQL: embeddings need the extension 'vector', which this server does not have. Install pgvector on the "
        f"server (the package postgresql-NN-pgvector), {_OR_WORDS}"
    )


def _no_right() -> StoreError:
    return StoreError(
        "PostgreSQL: embeddings need the extension 'vector', and the role may not create this extension. Have an "
        f"administrator run `CREATE EXTENSION vector` in this database, {_OR_WORDS}"
    )


def vector_text(vector: bytes) -> str:
    """Convert a vector of little-endian float16 components to the text form of pgvector. Five digits keep the full
    precision of float16."""
    width = width_of(vector)
    return "[" + ("%.5g," * width)[:-1] % struct.unpack(f"<{width}e", vector) + "]"


def width_of(vector: bytes) -> int:
    """Return the number of components of a float16 vector."""
    return len(vector) // 2


def index_name(store: int, width: int) -> str:
    """Return the name of a vector store's index over vectors with this number of components."""
    return f"chunk_vectors_{store:d}_{width:d}"


class VectorIndexes:
    """Creates and drops the vector indexes in a background task. `url`: a URL for the long statements, which may bypass
    the pooler that requests use."""

    def __init__(self, database: Database, url: str, *, exact: int = EXACT_VECTORS, every: float = _EVERY) -> None:
        """`exact`: the maximum number of vectors of a vector store without an index. `every`: seconds between two
        checks for missing indexes. All processes together check once in this time."""
        self._database = database
        self._url = url
        self.exact = exact
        self._every = every
        self._next = 0.0
        self._task: asyncio.Task[None] | None = None
        self._making: Connection | None = None
        self._closed = False

    def look(self) -> None:
        """Start a background check for missing indexes, at most once per interval. Returns immediately."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next and (self._task is None or self._task.done()):
            self._next = loop.time() + self._every
            self._task = loop.create_task(self._look())

    async def made(self) -> None:
        """Wait until the running check and its index creations end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def aclose(self) -> None:
        """Stop the background task. If the server is creating an index, the server completes the index without the
        client."""
        if self._task is None:
            return
        self._closed = True
        if self._making is not None:
            # Abort the socket, because on a task cancellation the driver would cancel the statement on the server.
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
        """Return the names of indexes to drop, and the statements that create missing indexes, by name of the index.
        Both results are empty while another process creates an index."""
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
            raise store_error("Creating an index of vectors", error) from error
        finally:
            self._making = None
            connection.terminate()

    async def _connect(self) -> Connection:
        """Open a connection for statements that take minutes. The connection has no statement or lock timeout, unless a
        pooler refuses these server parameters."""
        try:
            try:
                return await connect(self._url, _CONNECT_SECONDS, statement_timeout="0", lock_timeout="0")
            except asyncpg.ProtocolViolationError:
                return await connect(self._url, _CONNECT_SECONDS)
        except _FAILURES as error:
            raise connecting_failed(error, self._database.setting_of(self._url)) from error
