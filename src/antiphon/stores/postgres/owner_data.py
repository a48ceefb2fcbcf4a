"""`OwnerData` over PostgreSQL.

Lives here: reading everything that belongs to an owner, deleting it, and giving unused space back. Not here: the SQL of
that where it is alike in all backends (`../owner_data.py`), the command line (`commands/admin.py`), files' contents.

It works on a connection of its own, without the limits of requests: counting takes as long as there are rows.

Invariant: everything that has an owner is in `OWNED` or in `ELSEWHERE`; a test compares them with the schema.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from antiphon.engine.ports.owner_data import ExportedRow, OwnerCounts, Shrunk
from antiphon.errors import StoreError
from antiphon.stores.bodies import Bodies
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.owner_data import AT_ONCE, DELETE, exported, owned
from antiphon.stores.postgres.connecting import Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import connecting_failed, store_error
from antiphon.stores.postgres.tables import PostgresTables, postgres_sql
from antiphon.stores.postgres.vector_database import open_vectors
from antiphon.stores.tables import Statement

_CONNECT_SECONDS = 5.0
OWNED = owned("pos::text") | {
    "vector_stores": """
        SELECT id, created_at, name, description, metadata, expires_days
        FROM vector_stores WHERE owner = :owner ORDER BY number
    """,
    "vector_store_files": """
        SELECT f.file_id, s.id AS store, f.filename, f.status, f.attributes
        FROM vector_stores s JOIN vector_files f ON f.store_number = s.number
        WHERE s.owner = :owner ORDER BY s.number, f.created_at
    """,
}
ELSEWHERE = frozenset(
    {"chains", "containers", "files", "idempotency", "jobs", "owner_bytes", "owner_files", "owner_queue"}
)
"""What has an owner beside that: parts of the others, counts of them, keys; files, which are their store's, and
containers, which are the sandbox's."""

# Of all owners but the one in whose name ids are taken that nobody may use (`withdrawals.py`).
_OWNERS = """
SELECT owner, sum(responses)::bigint, sum(conversations)::bigint, sum(prompts)::bigint, sum(files)::bigint,
       sum(stores)::bigint
FROM (
  SELECT owner, count(*) AS responses, 0 AS conversations, 0 AS prompts, 0 AS files, 0 AS stores
  FROM responses WHERE status <> 'withdrawn' GROUP BY owner
  UNION ALL SELECT owner, 0, count(*), 0, 0, 0 FROM conversations GROUP BY owner
  UNION ALL SELECT owner, 0, 0, count(*), 0, 0 FROM prompts GROUP BY owner
  UNION ALL SELECT owner, 0, 0, 0, count(*), 0 FROM files GROUP BY owner
  UNION ALL SELECT owner, 0, 0, 0, 0, count(*) FROM vector_stores WHERE owner IS NOT NULL GROUP BY owner
) AS counted GROUP BY owner ORDER BY owner COLLATE "C"
"""
_VECTOR_STORES = "SELECT id FROM vector_stores WHERE owner = $1"
_SIZE = "SELECT pg_database_size(current_database())"
_TABLES = """
SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables WHERE schemaname = current_schema() ORDER BY 1
"""


class PostgresOwnerData:
    """`OwnerData` of the database at `url`; `name`: what may be shown of that."""

    def __init__(self, url: str, name: str, database: Database, bodies: Bodies) -> None:
        """`database`: for what goes in pieces; this one's from now on. `bodies` opens what is sealed."""
        self._bodies = bodies
        self._url = url
        self._name = name
        self._database = database

    async def owners(self) -> list[OwnerCounts]:
        """Every owner of anything."""
        return [OwnerCounts(*row) async for row in self._rows(_OWNERS)]

    async def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Everything of an owner but files, as it was at one moment."""
        connection = await self._connect()
        try:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await connection.execute("SET LOCAL statement_timeout = 0")
            for kind, sql in OWNED.items():
                # A cursor by its SQL: the driver's would prepare a statement under a name.
                text, order = postgres_sql(sql)
                await connection.execute(f"DECLARE exported NO SCROLL CURSOR FOR {text}", *order({"owner": owner}))
                while rows := await connection.fetch(f"FETCH {AT_ONCE} FROM exported"):
                    for row in rows:
                        yield exported(kind, dict(row.items()), self._bodies)
                await connection.execute("CLOSE exported")
        except Exception as error:
            raise _failed("Reading", error) from error
        finally:
            connection.terminate()

    async def delete(self, owner: str) -> int:
        """Everything of an owner but files, in pieces that let requests through."""
        gone = await self._delete_vector_stores(owner)
        tables = PostgresTables(self._database)
        for sql in DELETE:
            piece = Statement(sql, {"owner": owner, "limit": AT_ONCE})
            while changed := (await tables.run([piece], again=True))[0]:
                gone += changed
        return gone

    async def vacuum(self) -> list[Shrunk]:
        """Make room for new rows of what dead ones took, and give back what is free at the ends of tables. Nobody waits
        for it, and nothing is rewritten: the server does the same by itself (autovacuum)."""
        before = await self._database.fetch(_SIZE)
        connection = await self._connect()
        try:
            for (table,) in await connection.fetch(_TABLES):
                await connection.execute(f"VACUUM {table}")
        except Exception as error:
            raise _failed("Vacuuming", error) from error
        finally:
            connection.terminate()
        return [Shrunk(self._name, before[0][0], (await self._database.fetch(_SIZE))[0][0])]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._database.aclose()

    async def _delete_vector_stores(self, owner: str) -> int:
        vectors = open_vectors(self._database, IdempotencyKeys(PostgresTables(self._database)), direct_url=self._url)
        try:
            gone = 0
            for (store_id,) in await self._database.fetch(_VECTOR_STORES, owner):
                gone += await vectors.stores.delete(owner, store_id)
            while await vectors.ingestion.sweep():
                pass
            return gone
        finally:
            await vectors.aclose()

    async def _rows(self, sql: str) -> AsyncIterator[tuple[Any, ...]]:
        connection = await self._connect()
        try:
            await connection.execute("BEGIN READ ONLY")
            await connection.execute("SET LOCAL statement_timeout = 0")
            for row in await connection.fetch(sql):
                yield tuple(row)
        except Exception as error:
            raise _failed("Reading", error) from error
        finally:
            connection.terminate()

    async def _connect(self) -> Connection:
        try:
            return await connect(self._url, _CONNECT_SECONDS)
        except Exception as error:
            raise connecting_failed(error, self._database.setting_of(self._url)) from error


def _failed(doing: str, error: Exception) -> StoreError:
    return error if isinstance(error, StoreError) else store_error(doing, error)
