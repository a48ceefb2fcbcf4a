"""The rows of uploaded files: `FileRows` over SQLite.

Lives here: the SQL by name. Not here: the order of row and content (`stores/kept_files.py`), pending rows
(`pending_blobs.py`), threads, connections and transactions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import FileQuery, NoRoom, StoredFile
from antiphon.ids import Clock, now
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.kept_files import LEAST_ROOM, ContentTaken, KeptFile, kept_file
from antiphon.stores.sqlite.pending_blobs import KEEP, LET_GO, SqlitePendingRows
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement, milliseconds

COLUMNS = "id, name, purpose, media_type, size, sha256, created_at, expires_at, blob"
_THERE = "(expires_at IS NULL OR expires_at > :at)"

USED = f"SELECT ifnull(sum(max(size, {LEAST_ROOM})), 0) FROM files WHERE owner = :owner"
KEPT = "SELECT ifnull(sum(size), 0) FROM files"
# The total is looked at by the statement that adds to it, so that uploads at the same time cannot both fit.
INSERT_FILE = f"""
INSERT INTO files (owner, {COLUMNS})
SELECT :owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob
WHERE :limit IS NULL
  OR max(:size, {LEAST_ROOM}) + ({USED}) <= :limit
"""
GET_FILE = f"SELECT {COLUMNS} FROM files WHERE owner = :owner AND id = :id AND {_THERE}"
# Its client was told that it could not be stored.
DELETE_UNTOLD = "DELETE FROM files WHERE owner = :owner AND id = :id"
DELETE_FILE = f"DELETE FROM files WHERE owner = :owner AND id = :id AND {_THERE}"

_LIST = f"""
SELECT {COLUMNS} FROM files
WHERE owner = :owner AND {_THERE} AND (:purpose IS NULL OR purpose = :purpose)
  AND (created_at, id) {{after}} (:after_at, :after)
ORDER BY created_at {{order}}, id {{order}} LIMIT :limit
"""
LIST_FORWARD = _LIST.format(after=">", order="ASC")
LIST_BACKWARD = _LIST.format(after="<", order="DESC")

EXPIRED = f"SELECT owner, {COLUMNS} FROM files WHERE expires_at <= :at LIMIT :limit"
_GOING = "FROM files WHERE blob IN (SELECT value FROM json_each(:blobs)) AND expires_at <= :at"
LET_GO_EXPIRED = f"""
INSERT INTO pending_blobs (key, lease_until) SELECT blob, 0 {_GOING} ON CONFLICT (key) DO UPDATE SET lease_until = 0
"""
DELETE_EXPIRED = f"DELETE {_GOING} RETURNING blob"

_EVER = (1 << 63) - 1


class SqliteFileRows:
    """`FileRows` on a writer and readers that the caller closes."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        keys: IdempotencyKeys,
        pending: SqlitePendingRows,
        *,
        owner_bytes: int | None = None,
        clock: Clock = now,
    ) -> None:
        """`owner_bytes`: the most that all files of one owner may take."""
        self._writer = writer
        self._readers = readers
        self._keys = keys
        self._pending = pending
        self._limit = owner_bytes
        self._clock = clock

    async def find(self, owner: str, file_id: str) -> KeptFile | None:
        """The file, or None."""
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": file_id, "at": self._now()})
        return kept_file(rows[0]) if rows else None

    async def page(self, owner: str, query: FileQuery, after: StoredFile | None) -> Sequence[StoredFile]:
        """See `FileRows.page`."""
        end = (_EVER, "") if query.descending else (-1, "")
        after_at, after_id = end if after is None else (milliseconds(after.created_at), after.id)
        rows = await self._readers.fetch(
            LIST_BACKWARD if query.descending else LIST_FORWARD,
            {
                "owner": owner,
                "at": self._now(),
                "purpose": query.purpose,
                "after_at": after_at,
                "after": after_id,
                "limit": query.limit + 1,
            },
        )
        return [kept_file(row).file for row in rows]

    async def insert(self, owner: str, kept: KeptFile, once: OnceOnly | None) -> None:
        """See `FileRows.insert`."""
        file = kept.file
        named = {
            "owner": owner,
            "id": file.id,
            "name": file.name,
            "purpose": file.purpose,
            "media_type": file.media_type,
            "size": file.size,
            "sha256": file.sha256,
            "created_at": milliseconds(file.created_at),
            "expires_at": milliseconds(file.expires_at) if file.expires_at is not None else None,
            "blob": kept.blob,
            "limit": self._limit,
        }
        unit = [Statement(INSERT_FILE, named, rows=1), Statement(KEEP, named, rows=1)]
        undo = [Statement(DELETE_UNTOLD, named), Statement(LET_GO, named)]
        try:
            await self._keys.make(once, file.id, unit, undo)
        except RowsMissing:
            if await self._pending.is_held(kept.blob):
                raise NoRoom from None
            raise ContentTaken from None

    async def delete(self, owner: str, kept: KeptFile) -> bool:
        """See `FileRows.delete`."""
        named = {"owner": owner, "id": kept.file.id, "at": self._now()}
        try:
            await self._writer.run([Statement(DELETE_FILE, named, rows=1), Statement(LET_GO, {"blob": kept.blob})])
        except RowsMissing:
            return False
        return True

    async def used(self, owner: str) -> int:
        """What all the owner's files take together, in bytes."""
        return int((await self._readers.fetch(USED, {"owner": owner}))[0][0])

    async def kept_bytes(self) -> int:
        """The contents of all files of all owners."""
        return int((await self._readers.fetch(KEPT, {}, own=True))[0][0])

    async def expired(self, limit: int) -> Sequence[tuple[str, KeptFile]]:
        """See `FileRows.expired`."""
        rows = await self._readers.fetch(EXPIRED, {"at": self._now(), "limit": limit})
        return [(row["owner"], kept_file(row)) for row in rows]

    async def delete_expired(self, blobs: Sequence[str]) -> Sequence[str]:
        """See `FileRows.delete_expired`."""
        named = {"blobs": json.dumps(list(blobs)), "at": self._now()}
        went: list[tuple[str]] = []
        await self._writer.run([Statement(LET_GO_EXPIRED, named), Statement(DELETE_EXPIRED, named, into=went)])
        return [blob for (blob,) in went]

    def _now(self) -> int:
        return milliseconds(self._clock())
