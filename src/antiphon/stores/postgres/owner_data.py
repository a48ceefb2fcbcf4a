"""`OwnerData` over PostgreSQL.

Lives here: reading everything that belongs to an owner, deleting it, and giving unused space back. Not here: the
command line (`commands/admin.py`), files' contents.

It works on a connection of its own, without the limits of requests: counting takes as long as there are rows.

Invariant: everything that has an owner is in `OWNED` or in `ELSEWHERE`; a test compares them with the schema.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from antiphon.engine.ports.owner_data import ExportedRow, OwnerCounts, Shrunk
from antiphon.errors import StoreError
from antiphon.stores.bodies import Bodies
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.postgres.connecting import Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import connecting_failed, store_error
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.postgres.vector_database import open_vectors

_CONNECT_SECONDS = 5.0
_AT_ONCE = 100

# A row's JSON, and what the model was shown beyond it, where that was kept.
_BOTH = "(VALUES (false), (true)) AS both_parts (more)"
OWNED = {
    "responses": "SELECT id, created_at, body FROM responses WHERE owner = $1 ORDER BY created_at, id",
    "response_items": f"""
        SELECT i.response_id, CASE WHEN more THEN 'shown' WHEN i.dir = 0 THEN 'input' ELSE 'output' END AS part,
               CASE WHEN more THEN i.shown ELSE i.body END AS body
        FROM responses r JOIN response_items i ON i.response_id = r.id CROSS JOIN {_BOTH}
        WHERE r.owner = $1 AND (NOT more OR i.shown IS NOT NULL)
        ORDER BY r.created_at, r.id, i.dir, i.seq, more
    """,
    "conversations": """
        SELECT id, created_at, metadata AS body FROM conversations WHERE owner = $1 ORDER BY created_at, id
    """,
    "conversation_items": f"""
        SELECT conversation_id, CASE WHEN more THEN pos || ' shown' ELSE pos::text END AS part,
               CASE WHEN more THEN shown ELSE body END AS body
        FROM conversation_items CROSS JOIN {_BOTH} WHERE owner = $1 AND (NOT more OR shown IS NOT NULL)
        ORDER BY conversation_id, pos, more
    """,
    "prompts": "SELECT id, name, metadata AS body FROM prompts WHERE owner = $1 ORDER BY created_at, id",
    "prompt_versions": """
        SELECT v.prompt_id, v.version, v.body FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
        WHERE p.owner = $1 ORDER BY v.prompt_id, v.version
    """,
    "usage_days": """
        SELECT day, model, upstream, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
               estimated_calls, estimated_input_tokens, estimated_output_tokens, cost
        FROM usage_days WHERE owner = $1 ORDER BY day, model, upstream
    """,
    "vector_stores": """
        SELECT id, created_at, name, description, metadata, expires_days
        FROM vector_stores WHERE owner = $1 ORDER BY number
    """,
    "vector_store_files": """
        SELECT f.file_id, s.id AS store, f.filename, f.status, f.attributes
        FROM vector_stores s JOIN vector_files f ON f.store_number = s.number
        WHERE s.owner = $1 ORDER BY s.number, f.created_at
    """,
}
"""What is exported of an owner, by kind: two columns that name a row, and its JSON, or the fields of that."""
ELSEWHERE = frozenset(
    {"chains", "containers", "files", "idempotency", "jobs", "owner_bytes", "owner_files", "owner_queue"}
)
"""What has an owner beside that: parts of the others, counts of them, keys; files, which are their store's, and
containers, which are the sandbox's."""

# Each in pieces; the first statement of a pair locks in the order in which all others do.
_DELETE = (
    """DELETE FROM chains WHERE id IN (
      SELECT c.id FROM chains c WHERE c.id IN (SELECT chain_id FROM responses WHERE owner = $1 LIMIT $2)
      ORDER BY c.id FOR UPDATE
    ) RETURNING 1""",
    """DELETE FROM conversations WHERE owner = $1 AND id IN (
      SELECT id FROM conversations WHERE owner = $1 ORDER BY id LIMIT $2 FOR UPDATE
    ) RETURNING 1""",
    """DELETE FROM idempotency WHERE owner = $1 AND key IN (
      SELECT key FROM idempotency WHERE owner = $1 ORDER BY key LIMIT $2 FOR UPDATE
    ) RETURNING 1""",
    "DELETE FROM prompts WHERE id IN (SELECT id FROM prompts WHERE owner = $1 LIMIT $2) RETURNING 1",
    """DELETE FROM usage_days WHERE ctid = ANY(ARRAY(
      SELECT ctid FROM usage_days WHERE owner = $1 LIMIT $2
    )) RETURNING 1""",
)
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
                await connection.execute(f"DECLARE exported NO SCROLL CURSOR FOR {sql}", owner)
                while rows := await connection.fetch(f"FETCH {_AT_ONCE} FROM exported"):
                    for row in rows:
                        yield _exported(kind, dict(row.items()), self._bodies)
                await connection.execute("CLOSE exported")
        except Exception as error:
            raise _failed("Reading", error) from error
        finally:
            connection.terminate()

    async def delete(self, owner: str) -> int:
        """Everything of an owner but files, in pieces that let requests through."""
        gone = await self._delete_vector_stores(owner)
        for sql in _DELETE:
            while changed := len(await self._database.write(sql, owner, _AT_ONCE, again=True)):
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


def _exported(kind: str, fields: dict[str, Any], bodies: Bodies) -> ExportedRow:
    (_, row_id), (_, of), *others = fields.items()
    data = {name: json.loads(bodies.open(value)) if isinstance(value, bytes) else value for name, value in others}
    return ExportedRow(kind, row_id, of, data["body"] if list(data) == ["body"] else data)


def _failed(doing: str, error: Exception) -> StoreError:
    return error if isinstance(error, StoreError) else store_error(doing, error)
