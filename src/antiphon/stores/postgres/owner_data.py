"""Implements `OwnerData` for PostgreSQL.

Lives here: reading, moving and deleting an owner's data, and vacuuming tables. This module also has the statements that
keep foreign keys and byte counts correct when data moves to another owner. Not here: the SQL that all backends share
and the order of a move (`../owner_data.py`), the contents of files.

Counts and exports use a separate connection without the timeouts of requests, because their duration grows with the
number of rows.

The foreign key from a response to its chain includes the owner. The foreign key from an item to its conversation
includes the owner too. PostgreSQL checks foreign keys at the end of a statement, so one statement of a move updates
both tables of a foreign key. Each transaction of a move first locks the rows in a separate statement. The next
statement then sees everything that other transactions committed before the lock.

Invariant: every table with an owner column is in `OWNED` or in `ELSEWHERE`. A test compares `OWNED` and `ELSEWHERE`
with the schema.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from antiphon.config.state import StateSettings
from antiphon.engine.ports.state import ExportedRow, OwnerCounts, Shrunk
from antiphon.engine.ports.usage_sums import KEY, NUMBERS
from antiphon.errors import StoreError
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import missing_steps
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.owner_data import (
    AT_ONCE,
    DELETE,
    USAGE_COLUMNS,
    MoveSql,
    OwnerMoves,
    count_query,
    delete_vector_stores,
    export_row,
    owned_rows,
    owned_vector_rows,
    owner_counts,
)
from antiphon.stores.owner_usage import MOST
from antiphon.stores.postgres.backend import open_vectors, urls
from antiphon.stores.postgres.connecting import Connection, connect
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.failures import connecting_failed, store_error
from antiphon.stores.postgres.migrate import applied_steps, packaged_steps
from antiphon.stores.postgres.tables import PostgresTables, postgres_sql
from antiphon.stores.tables import Statement

_CONNECT_SECONDS = 5.0
OWNED = owned_rows("pos::text") | owned_vector_rows("number", "store_number")
ELSEWHERE = frozenset(
    {
        *("audit", "chains", "client_keys", "containers", "files", "idempotency", "jobs", "owner_bytes", "owner_files"),
        *("live_cancels", "owner_queue", "owner_teams", "request_records"),
    }
)
"""The tables with an owner column that an export omits. These tables hold parts or counts of exported tables,
idempotency keys, files and containers. The file store exports the files, and the sandbox manages the containers. Client
keys and the audit log belong to the operator. The recorded contents of requests are short-lived copies of exported
data."""

# Disables the statement timeout, because the duration of a count grows with the number of rows.
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0"
_COUNTS = count_query("responses", "conversations", "prompts", "files", "vector_stores")
_SIZE = "SELECT pg_database_size(current_database())"
_TABLES = """
SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables WHERE schemaname = current_schema() ORDER BY 1
"""


class PostgresOwnerData:
    """Implements `OwnerData` for the database at `url`. `name`: the URL without its password, for messages."""

    def __init__(self, url: str, name: str, database: Database, bodies: Bodies, *, at_once: int = AT_ONCE) -> None:
        """`database`: the pool for deletions, which this object closes. `bodies` decrypts sealed bodies. `at_once`: the
        number of rows per read or deletion."""
        self._at_once = at_once
        self._bodies = bodies
        self._url = url
        self._name = name
        self._database = database

    async def owners(self) -> list[OwnerCounts]:
        """Return the counts of every owner that has stored objects, sorted by owner."""
        async with self._connected("Reading") as connection:
            await connection.execute(_BEGIN)
            return owner_counts(await connection.fetch(_COUNTS))

    async def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Yield all data of an owner except files, read from one snapshot."""
        async with self._connected("Reading") as connection:
            await connection.execute(_BEGIN)
            for kind, sql in OWNED.items():
                # DECLARE opens the cursor in SQL, because the driver's cursors need a named prepared statement.
                text, order = postgres_sql(sql)
                await connection.execute(f"DECLARE exported NO SCROLL CURSOR FOR {text}", *order({"owner": owner}))
                while rows := await connection.fetch(f"FETCH {self._at_once} FROM exported"):
                    for row in rows:
                        yield export_row(kind, dict(row.items()), self._bodies)
                await connection.execute("CLOSE exported")

    async def delete(self, owner: str) -> int:
        """Delete all data of an owner except files, in small transactions, so that requests can run between two
        transactions. Returns the number of deleted objects."""
        tables = PostgresTables(self._database)
        async with aclosing(open_vectors(self._database, IdempotencyStore(tables), direct_url=self._url)) as vectors:
            gone = await delete_vector_stores(vectors, tables, owner)
        for sql in DELETE:
            piece = Statement(sql, {"owner": owner, "limit": self._at_once})
            while changed := (await tables.run([piece], again=True))[0]:
                gone += changed
        return gone

    async def obstacles(self, old: str, new: str) -> list[str]:
        """See `OwnerData.obstacles`."""
        return await self._moves(old, new).obstacles()

    async def move(self, old: str, new: str) -> AsyncGenerator[str]:
        """See `OwnerData.move`."""
        async with aclosing(self._moves(old, new).run()) as done:
            async for kind in done:
                yield kind

    def _moves(self, old: str, new: str) -> OwnerMoves:
        tables = PostgresTables(self._database)
        return OwnerMoves(tables, tables, MOVE_SQL, old, new, at_once=self._at_once)

    async def vacuum(self) -> list[Shrunk]:
        """Run VACUUM on every table. VACUUM makes the space of dead rows reusable, and truncates free space at a
        table's end. VACUUM blocks no reads or writes of rows, and rewrites no table. The server's autovacuum does the
        same work at intervals."""
        before = await self._database.fetch(_SIZE)
        async with self._connected("Vacuuming") as connection:
            for (table,) in await connection.fetch(_TABLES):
                await connection.execute(f"VACUUM {table}")
        return [Shrunk(self._name, before[0][0], (await self._database.fetch(_SIZE))[0][0])]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._database.aclose()

    @asynccontextmanager
    async def _connected(self, doing: str) -> AsyncIterator[Connection]:
        """Open a separate connection for the duration of the `async with`. A failure becomes a `StoreError` that names
        the operation `doing`."""
        try:
            connection = await connect(self._url, _CONNECT_SECONDS)
        except Exception as error:
            raise connecting_failed(error, self._database.setting_of(self._url)) from error
        try:
            yield connection
        except StoreError:
            raise
        except Exception as error:
            raise store_error(doing, error) from error
        finally:
            connection.terminate()


async def open_postgres_owners(state: StateSettings, bodies: Bodies, *, at_once: int = AT_ONCE) -> PostgresOwnerData:
    """Open the data of all owners in the database at `state.url`. The caller closes the returned object. `bodies`
    decrypts sealed bodies. Raises `StoreError`."""
    url, direct_url = urls(state)
    # Deletions may wait up to ten minutes for a busy server.
    database = Database(url, DatabaseLimits(size=1, deadline=600.0))
    try:
        if missing_steps(await applied_steps(database), packaged_steps()):
            raise StoreError("The database lacks schema steps of this version of Antiphon. Run `antiphon migrate up`.")
    except BaseException:
        await database.aclose()
        raise
    return PostgresOwnerData(direct_url, state.place.shown, database, bodies, at_once=at_once)


_COLUMNS, _NUMBERS = ", ".join(USAGE_COLUMNS), ", ".join(NUMBERS)
_WAITING = """
status = 'in_progress' AND store_number IN (SELECT number FROM vector_stores WHERE owner IN (:both...))
"""

MOVE_SQL = MoveSql(
    chains=(
        "SELECT 1 FROM chains WHERE id IN (:ids...) AND owner = :old ORDER BY id FOR UPDATE",
        # A trigger of `responses` moves the counted bytes.
        """
WITH idle (id) AS MATERIALIZED (
  SELECT id FROM chains WHERE id IN (:ids...) AND owner = :old
    AND NOT EXISTS (SELECT 1 FROM responses r JOIN jobs j ON j.response_id = r.id WHERE r.chain_id = chains.id)
),
moved AS (UPDATE chains SET owner = :new WHERE id IN (SELECT id FROM idle))
UPDATE responses SET owner = :new WHERE owner = :old AND chain_id IN (SELECT id FROM idle)
""",
    ),
    conversations=(
        "SELECT 1 FROM conversations WHERE owner = :old AND id IN (:ids...) ORDER BY id FOR UPDATE",
        """
WITH idle (id, bytes) AS MATERIALIZED (
  SELECT id, bytes FROM conversations
  WHERE owner = :old AND id IN (:ids...) AND (locked_by IS NULL OR locked_until <= lease_now())
),
items AS (
  UPDATE conversation_items SET owner = :new WHERE owner = :old AND conversation_id IN (SELECT id FROM idle)
),
moved AS (UPDATE conversations SET owner = :new WHERE owner = :old AND id IN (SELECT id FROM idle))
SELECT count_bytes(ARRAY[:old::text, :new::text], ARRAY[-total, total])
FROM (SELECT coalesce(sum(bytes), 0)::bigint AS total FROM idle) AS summed
""",
    ),
    files=(
        """
WITH moved AS (UPDATE files SET owner = :new WHERE owner = :old RETURNING greatest(size, 4096) AS bytes),
total (bytes) AS (SELECT sum(bytes)::bigint FROM moved),
taken AS (UPDATE owner_files o SET bytes = o.bytes - t.bytes FROM total t WHERE o.owner = :old AND t.bytes > 0)
INSERT INTO owner_files AS o (owner, bytes) SELECT :new, bytes FROM total WHERE bytes > 0
ON CONFLICT (owner) DO UPDATE SET bytes = o.bytes + excluded.bytes
""",
    ),
    usage=(
        f"""
WITH gone AS (DELETE FROM usage_days WHERE owner = :old RETURNING *)
INSERT INTO usage_days AS u ({_COLUMNS})
SELECT day, :new, model, upstream, {_NUMBERS} FROM gone ORDER BY day, model, upstream
ON CONFLICT ({", ".join(KEY)}) 
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
""",
    ),
    rest=(
        "DELETE FROM owner_queue WHERE owner = :old AND jobs = 0",
        "DELETE FROM owner_files WHERE owner = :old AND bytes = 0",
        "DELETE FROM owner_bytes WHERE owner = :old AND bytes = 0",
    ),
    indexing="""
SELECT f.file_id FROM vector_files f JOIN vector_stores s ON s.number = f.store_number
WHERE s.owner = :old AND f.status = 'in_progress' AND f.claim IS NOT NULL AND f.lease_until > lease_now()
ORDER BY f.file_id
""",
    hold=f"""
UPDATE vector_files SET claim = NULL, lease_until = lease_in(:lease)
WHERE {_WAITING} AND (claim IS NULL OR lease_until IS NULL OR lease_until <= lease_now())
""",
    let_go=f"UPDATE vector_files SET lease_until = NULL WHERE {_WAITING} AND claim IS NULL",
)
