"""Stores files: metadata rows for any backend, contents in any `BlobStore`.

Lives here: the SQL, the order of writing row and content, and the sweep of expired files. Not here: the SQL that
differs by backend (`sqlite/files.py`, `postgres/files.py`), contents that belong to no file (`blobs/pending.py`), the
storage for contents (`blobs/`).

Invariant: the store writes a row after its content is durable, and deletes the row before the content. The transaction
that inserts the file's row deletes the pending row; the one that deletes the file's row inserts a pending row. So a
crash at any moment leaves no row without its content and no content without a row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import (
    BlobReader,
    BlobStore,
    FileFields,
    FileQuery,
    OpenFile,
    OwnerStorageFull,
    StoredFile,
)
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.state import Page
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, now
from antiphon.stores.blobs.pending import KEEP, LET_GO, PendingBlob, PendingBlobs
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.pages import Row
from antiphon.stores.tables import RowsMissing, Statement, Tables, both_ways, changed, milliseconds

LEAST_ROOM = 4096
"""The minimum bytes counted per file, because an empty file uses disk space as well."""
COLUMNS = "id, name, purpose, media_type, size, sha256, created_at, expires_at, blob"
_BATCH = 200
_EVER = (1 << 63) - 1


class ContentTaken(Exception):
    """A sweep deleted the content, so no file can be made of it."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file and the key of its content."""

    file: StoredFile
    blob: str


KEPT = "SELECT CAST(coalesce(sum(size), 0) AS bigint) FROM files"
DELETE = "DELETE FROM files WHERE owner = :owner AND id = :id AND blob = :blob"
# Only files that the same transaction released: a file may expire between two statements.
DELETE_LET_GO = """
DELETE FROM files WHERE blob IN (:blobs...)
  AND EXISTS (SELECT 1 FROM pending_blobs WHERE key = files.blob AND lease_until = taken())
RETURNING blob
"""


class FileSql:
    """The statements of files in one backend."""

    def __init__(self, *, ends: str, used: str, insert: tuple[str, ...]) -> None:
        """The SQL that differs by backend. `ends`: when a file expires. `used`: the bytes that an owner's files take.
        `insert`: the statements that add a file. Each changes one row if there is room (`:room`, at most `:limit` in
        all)."""
        self.used = used
        self.insert = insert
        there = f"(expires_at IS NULL OR {ends} > now_ms())"
        over = f"expires_at IS NOT NULL AND {ends} <= (SELECT now_ms())"
        self.find = f"SELECT {COLUMNS} FROM files WHERE owner = :owner AND id = :id AND {there}"
        self.page = both_ways(f"""
SELECT {COLUMNS} FROM files
WHERE owner = :owner AND {there} AND (CAST(:purpose AS text) IS NULL OR purpose = :purpose)
  AND (created_at, id) {{after}} (:after_at, :after)
ORDER BY created_at {{order}}, id {{order}} LIMIT :limit
""")
        self.expired = f"SELECT owner, {COLUMNS} FROM files WHERE {over} LIMIT :limit"
        self.let_go_expired = f"""
INSERT INTO pending_blobs (key, lease_until) SELECT blob, taken() FROM files WHERE blob IN (:blobs...) AND {over}
ON CONFLICT (key) DO UPDATE SET lease_until = taken()
"""


class FileStore:
    """Files of all owners. Every method raises `StoreError` when the storage fails.

    A missing, an expired and another owner's file give the same result: None or False. The caller closes the tables;
    the store closes the storage of contents.
    """

    def __init__(
        self,
        tables: Tables,
        keys: IdempotencyStore,
        sql: FileSql,
        pending: PendingBlobs,
        blobs: BlobStore,
        *,
        owner_bytes: int | None = None,
        clock: Clock = now,
    ) -> None:
        """`owner_bytes`: the maximum bytes of one owner's files. `clock`: the date, where the database has none."""
        self._tables = tables
        self._keys = keys
        self._sql = sql
        self._pending = pending
        self._blobs = blobs
        self._limit = owner_bytes
        self._clock = clock
        self.on_expired: Callable[[str, str], Awaitable[None]] | None = None
        """Called with owner and id before the sweep deletes an expired file."""

    async def aclose(self) -> None:
        """Wait for reads and writes of contents to end."""
        await self._pending.aclose()

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[FileUpload]:
        """Begin a new file."""
        async with self._pending.uploading() as blob:
            yield FileUpload(self, blob)

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        """The file, or None."""
        kept = await self._found(owner, file_id)
        return kept.file if kept is not None else None

    async def open(self, owner: str, file_id: str) -> OpenFile | None:
        """The file with its content open, or None. The caller closes it."""
        kept = await self._found(owner, file_id)
        if kept is None:
            return None
        try:
            return OpenedFile(kept.file, await self._blobs.open(kept.blob))
        except StoreError:
            # Another request deleted the file between the two reads: then its row is deleted by now.
            if await self._found(owner, file_id) is None:
                return None
            raise

    async def list(self, owner: str, query: FileQuery) -> Page[StoredFile] | None:
        """A page by creation time, or None when `after` is not a file of the owner."""
        end = (_EVER, "") if query.descending else (-1, "")
        if query.after is not None:
            after = await self.get(owner, query.after)
            if after is None:
                return None
            end = (milliseconds(after.created_at), after.id)
        named = {"owner": owner, "purpose": query.purpose, "after_at": end[0], "after": end[1]}
        rows = await self._tables.fetch(
            self._sql.page[query.descending], {**named, "limit": query.limit + 1, **self._date()}
        )
        found = [_kept(row).file for row in rows]
        return Page(tuple(found[: query.limit]), has_more=len(found) > query.limit)

    async def insert(self, owner: str, kept: FileRow, once: OnceOnly | None) -> None:
        """Insert the file's row and delete its pending row. Raises `OwnerStorageFull`, `ContentTaken`, `AlreadyMade`
        and `ApiError`."""
        file = kept.file
        ends = file.expires_at
        named: dict[str, object] = {
            "owner": owner,
            "id": file.id,
            "name": file.name,
            "purpose": file.purpose,
            "media_type": file.media_type,
            "size": file.size,
            "room": max(file.size, LEAST_ROOM),
            "limit": self._limit,
            "sha256": file.sha256,
            "created_at": milliseconds(file.created_at),
            "expires_at": None if ends is None else milliseconds(ends),
            "left": None if ends is None else milliseconds(ends - self._clock()),
            "blob": kept.blob,
        }
        unit = [Statement(sql, named, rows=1) for sql in (*self._sql.insert, KEEP)]
        try:
            await self._keys.make(once, file.id, unit, [Statement(DELETE, named), Statement(LET_GO, named)])
        except RowsMissing:
            if await self._pending.rows.is_held(kept.blob):
                raise OwnerStorageFull from None
            raise ContentTaken from None

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete the file; False when it does not exist. Its content is deleted now, or by the next sweep if the
        storage fails. For readers of the content at that moment see `BlobReader`."""
        kept = await self._found(owner, file_id)
        if kept is None:
            return False
        named = {"owner": owner, "id": file_id, "blob": kept.blob}
        if not await changed(self._tables, Statement(DELETE, named, rows=1), Statement(LET_GO, named)):
            return False
        await self._pending.forget(kept.blob)
        return True

    async def used(self, owner: str) -> int:
        """The bytes that all the owner's files take; each file counts at least `LEAST_ROOM`."""
        rows = await self._tables.fetch(self._sql.used, {"owner": owner})
        return int(rows[0][0]) if rows else 0

    async def stored_bytes(self) -> int:
        """The bytes of all files of all owners."""
        return int((await self._tables.fetch(KEPT, {}))[0][0])

    async def sweep(self) -> tuple[int, int]:
        """Delete expired files, and the contents of pending blobs with an expired lease. Returns the number of each.
        Any process may run it at any time."""
        left = await self._pending.sweep()
        return await self._sweep_expired(), left

    async def _sweep_expired(self) -> int:
        gone = 0
        while rows := await self._tables.fetch(self._sql.expired, {"limit": _BATCH, **self._date()}):
            if self.on_expired is not None:
                for row in rows:
                    await self.on_expired(row["owner"], row["id"])
            named = {"blobs": [row["blob"] for row in rows], **self._date()}
            went: list[Row] = []
            await self._tables.run(
                [Statement(self._sql.let_go_expired, named), Statement(DELETE_LET_GO, named, into=went)]
            )
            for row in went:
                await self._pending.forget(row[0])
            gone += len(went)
        return gone

    async def _found(self, owner: str, file_id: str) -> FileRow | None:
        rows = await self._tables.fetch(self._sql.find, {"owner": owner, "id": file_id, **self._date()})
        return _kept(rows[0]) if rows else None

    def _date(self) -> dict[str, int]:
        return {"now_ms": milliseconds(self._clock())}


class FileUpload:
    """A file during its upload. Unless `keep` returned, the store removes everything of it."""

    def __init__(self, files: FileStore, blob: PendingBlob) -> None:
        self._files = files
        self._blob = blob

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._blob.size

    async def write(self, data: bytes) -> None:
        """Append to the content. Raises `StoreError`, also when a sweep deleted an upload that stalled for too long."""
        await self._blob.write(data)

    async def keep(self, owner: str, fields: FileFields, once: OnceOnly | None = None) -> StoredFile:
        """Create the owner's file; it is durable when this returns. Raises `OwnerStorageFull`. Raises `AlreadyMade` for
        a key that is bound to the same fields and content."""
        blob = await self._blob.seal()
        file = StoredFile(
            fields.id,
            fields.name,
            fields.purpose,
            fields.media_type,
            blob.size,
            blob.sha256,
            _as_kept(fields.created_at),
            None if fields.expires_at is None else _as_kept(fields.expires_at),
        )
        if once is not None:
            # The content is part of the request's fingerprint, and is known only now.
            once = replace(once, fingerprint=f"{once.fingerprint}-{blob.sha256}")
        self._blob.settled = True
        try:
            # Until the insert has ended, the content may or may not belong to a file.
            await to_the_end(self._files.insert(owner, FileRow(file, blob.key), once))
        except ContentTaken:
            self._blob.settled = False
            raise self._blob.lost() from None
        except (OwnerStorageFull, AlreadyMade, ApiError):
            self._blob.settled = False
            raise
        return file


class OpenedFile:
    """`OpenFile`: a file with its content open."""

    def __init__(self, file: StoredFile, content: BlobReader) -> None:
        self.file = file
        self._content = content

    @property
    def path(self) -> Path | None:
        """The path of its content on this machine's disk, or None."""
        return self._content.path

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Bytes from `start`: at most `limit` of them, or all the rest."""
        return await self._content.read(start, max(0, self._content.size - start) if limit is None else limit)

    async def aclose(self) -> None:
        """Close the content."""
        await self._content.aclose()


def _kept(row: Row) -> FileRow:
    """The file in a row that has a column for each field."""
    file = StoredFile(
        id=row["id"],
        name=row["name"],
        purpose=row["purpose"],
        media_type=row["media_type"],
        size=row["size"],
        sha256=row["sha256"],
        created_at=row["created_at"] / 1000,
        expires_at=row["expires_at"] / 1000 if row["expires_at"] is not None else None,
    )
    return FileRow(file, row["blob"])


def _as_kept(seconds: float) -> float:
    """A time, rounded to the milliseconds that the database stores."""
    return round(seconds * 1000) / 1000
