"""The rows of uploaded files: `FileRows` over PostgreSQL.

Lives here: the SQL. Not here: the order of row and content (`stores/kept_files.py`), pending rows
(`pending_blobs.py`).

What an owner's files take is a row of its own, which is locked before a file is added: uploads at the same time cannot
both fit. Deleting files, in whatever way, takes off by a trigger.

Invariant: `owner_files.bytes` is the sum over the owner's files, each at least `LEAST_ROOM`. Expiry is by the
database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import FileQuery, NoRoom, StoredFile
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.kept_files import LEAST_ROOM, ContentTaken, KeptFile, kept_file
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.making import make
from antiphon.stores.postgres.pending_blobs import KEEP, LET_GO
from antiphon.stores.postgres.values import time_left
from antiphon.stores.tables import milliseconds

_COLUMNS = "id, name, purpose, media_type, size, sha256, created_at, expires_at, blob"
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000)"
# By the database's clock, whatever that of the machine is which took the file.
_OVER = "coalesce(gone_at, expires_at)"
_THERE = f"(expires_at IS NULL OR {_OVER} > {_NOW})"

FIND = f"SELECT {_COLUMNS} FROM files WHERE owner = $1 AND id = $2 AND {_THERE}"
_PAGE = f"""
SELECT {_COLUMNS} FROM files
WHERE owner = $1 AND {_THERE} AND ($2::text IS NULL OR purpose = $2)
  AND ($3::bigint IS NULL OR (created_at, id) {{after}} ($3, $4))
ORDER BY created_at {{order}}, id {{order}} LIMIT $5
"""
PAGE_FORWARD = _PAGE.format(after=">", order="ASC")
PAGE_BACKWARD = _PAGE.format(after="<", order="DESC")

# $2: what it takes, $3: the most that all may take.
TAKE_ROOM = """
INSERT INTO owner_files AS o (owner, bytes) SELECT $1, $2 WHERE $3::bigint IS NULL OR $2 <= $3
ON CONFLICT (owner) DO UPDATE SET bytes = o.bytes + excluded.bytes
  WHERE $3::bigint IS NULL OR o.bytes + excluded.bytes <= $3
RETURNING 1
"""
# $11: for how many milliseconds more it is kept.
INSERT = f"""
INSERT INTO files (owner, {_COLUMNS}, gone_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, {_NOW}::bigint + $11::bigint)
"""
DELETE = f"""
WITH gone AS (DELETE FROM files WHERE owner = $1 AND id = $2 AND blob = $3 RETURNING blob), left_over AS ({LET_GO})
SELECT blob FROM gone
"""
EXPIRED = f"SELECT owner, {_COLUMNS} FROM files WHERE expires_at IS NOT NULL AND {_OVER} <= {_NOW} LIMIT $1"
DELETE_EXPIRED = f"""
WITH gone AS (
  DELETE FROM files WHERE blob = ANY($1::text[]) AND {_OVER} <= {_NOW} RETURNING blob
), left_over AS ({LET_GO})
SELECT blob FROM gone
"""
USED = "SELECT bytes FROM owner_files WHERE owner = $1"
KEPT = "SELECT coalesce(sum(size), 0)::bigint FROM files"


class PostgresFileRows:
    """`FileRows` on connections that the caller closes."""

    def __init__(self, database: Database, *, keys: IdempotencyKeys, owner_bytes: int | None = None) -> None:
        """`owner_bytes`: the most that all files of one owner may take."""
        self._database = database
        self._keys = keys
        self._limit = owner_bytes

    async def find(self, owner: str, file_id: str) -> KeptFile | None:
        """The file, or None."""
        rows = await self._database.fetch(FIND, owner, file_id)
        return kept_file(rows[0]) if rows else None

    async def page(self, owner: str, query: FileQuery, after: StoredFile | None) -> Sequence[StoredFile]:
        """See `FileRows.page`."""
        behind = (None, None) if after is None else (milliseconds(after.created_at), after.id)
        sql = PAGE_BACKWARD if query.descending else PAGE_FORWARD
        rows = await self._database.fetch(sql, owner, query.purpose, *behind, query.limit + 1)
        return [kept_file(row).file for row in rows]

    async def insert(self, owner: str, kept: KeptFile, once: OnceOnly | None) -> None:
        """See `FileRows.insert`."""
        file = kept.file
        room = max(file.size, LEAST_ROOM)
        times = (milliseconds(file.created_at), None if file.expires_at is None else milliseconds(file.expires_at))
        left = None if file.expires_at is None else time_left(file.expires_at)
        given = (file.id, file.name, file.purpose, file.media_type, file.size, file.sha256, *times, kept.blob, left)

        async def work(connection: Connection) -> None:
            if not await connection.fetch(TAKE_ROOM, owner, room, self._limit):
                raise NoRoom
            if not await connection.fetch(KEEP, kept.blob):
                raise ContentTaken
            await connection.execute(INSERT, owner, *given)

        await make(self._database, self._keys, once, file.id, work)

    async def delete(self, owner: str, kept: KeptFile) -> bool:
        """See `FileRows.delete`."""

        async def work(connection: Connection) -> bool:
            return bool(await connection.fetch(DELETE, owner, kept.file.id, kept.blob))

        return await certainly(self._database, work)

    async def used(self, owner: str) -> int:
        """What all the owner's files take together, in bytes."""
        rows = await self._database.fetch(USED, owner)
        return int(rows[0][0]) if rows else 0

    async def kept_bytes(self) -> int:
        """The contents of all files of all owners."""
        return int((await self._database.fetch(KEPT))[0][0])

    async def expired(self, limit: int) -> Sequence[tuple[str, KeptFile]]:
        """See `FileRows.expired`."""
        return [(row["owner"], kept_file(row)) for row in await self._database.fetch(EXPIRED, limit)]

    async def delete_expired(self, blobs: Sequence[str]) -> Sequence[str]:
        """See `FileRows.delete_expired`."""

        async def work(connection: Connection) -> list[str]:
            return [row[0] for row in await connection.fetch(DELETE_EXPIRED, list(blobs))]

        return await certainly(self._database, work)
