"""Stores uploaded files: their metadata in SQLite or PostgreSQL, their contents in a `BlobStore`.

Lives here: the SQL of files, the order of writing a file's row and its content, and the sweep that deletes expired
files. Not here: the SQL that differs by backend (`sqlite/files.py`, `postgres/backend.py`), uploaded contents that
belong to no file (`blobs/pending.py`), the storage for file contents (`blobs/`).

Invariant: the store writes a row after its content is durable, and deletes the row before the content. The transaction
that inserts a file's row also deletes the content's row in the table `pending_blobs`. The transaction that deletes a
file's row inserts a row into `pending_blobs`, so that a sweep then deletes the content. So after a crash, every row of
a file still has its content. Every stored content has a row in one of the two tables.
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
    StoredFile,
)
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.state import Page
from antiphon.engine.waiting import to_the_end
from antiphon.errors import ApiError, OwnerFull, StoreError
from antiphon.ids import Clock, now
from antiphon.stores.blobs.pending import KEEP, LET_GO, PendingBlob, PendingBlobs
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.tables import (
    Row,
    RowsMissing,
    Statement,
    Tables,
    both_orders,
    count_by_owner,
    milliseconds,
    run_required,
)

LEAST_ROOM = 4096
"""The minimum bytes that a file counts toward its owner's limit, because even an empty file uses disk space."""
COLUMNS = "id, name, purpose, media_type, size, sha256, created_at, expires_at, blob"
_BATCH = 200
_EVER = (1 << 63) - 1


class ContentSwept(Exception):
    """A sweep deleted the uploaded content because its lease expired, so the store cannot create the file."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file's metadata, and the key of its content in the `BlobStore`."""

    file: StoredFile
    blob: str


KEPT = "SELECT CAST(coalesce(sum(size), 0) AS bigint) FROM files"
DELETE = "DELETE FROM files WHERE owner = :owner AND id = :id AND blob = :blob"
# Deletes only those files for which `let_go_expired` has inserted a pending row in the same transaction. Another file
# may expire between the two statements.
DELETE_LET_GO = """
DELETE FROM files WHERE blob IN (:blobs...)
  AND EXISTS (SELECT 1 FROM pending_blobs WHERE key = files.blob AND lease_until = taken())
RETURNING blob
"""


class FileSql:
    """The SQL statements of the file store in one backend."""

    def __init__(self, *, ends: str, used: str, insert: tuple[str, ...]) -> None:
        """The arguments are the SQL that differs by backend. `ends`: the SQL expression for a file's expiry time.
        `used`: the query for the total bytes of an owner's files. `insert`: the statements that add a file. Each
        statement changes one row if the owner's files, with the `:room` bytes of the new file, have at most `:limit`
        bytes."""
        self.used = used
        self.insert = insert
        there = f"(expires_at IS NULL OR {ends} > now_ms())"
        over = f"expires_at IS NOT NULL AND {ends} <= (SELECT now_ms())"
        self.find = f"SELECT {COLUMNS} FROM files WHERE owner = :owner AND id = :id AND {there}"
        self.page = both_orders(f"""
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
    """Stores the files of all owners. Every method raises `StoreError` when the storage fails.

    A missing file, an expired file and another owner's file give the same result: None or False. The caller closes the
    tables, and this store closes the storage for file contents.
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
        """`owner_bytes`: the maximum bytes of one owner's files; None: no limit. `clock`: the function that returns the
        current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._keys = keys
        self._sql = sql
        self._pending = pending
        self.blobs = blobs
        self._limit = owner_bytes
        self._clock = clock
        self.on_expired: Callable[[str, str], Awaitable[None]] | None = None
        """A callback that the sweep awaits with the owner and the file's id before it deletes an expired file."""

    async def aclose(self) -> None:
        """Wait until running reads and writes of file contents end, then close the storage for file contents."""
        await self._pending.aclose()

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[FileUpload]:
        """Begin an upload. The caller writes the content to the yielded `FileUpload`, then calls its `keep`."""
        async with self._pending.uploading() as blob:
            yield FileUpload(self, blob)

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        """Return the file's metadata, or None if the owner has no such file."""
        kept = await self._found(owner, file_id)
        return kept.file if kept is not None else None

    async def open(self, owner: str, file_id: str) -> OpenFile | None:
        """Open the file and its content for reading, or return None if the owner has no such file. The caller closes
        the returned file.

        Raises `StoreError`, for example with the reason `elsewhere` when another machine's disk has the content.
        """
        kept = await self._found(owner, file_id)
        if kept is None:
            return None
        try:
            return OpenedFile(kept.file, await self.blobs.open(kept.blob))
        except StoreError:
            # If the row is missing now, another request has deleted the file after this method read the row.
            if await self._found(owner, file_id) is None:
                return None
            raise

    async def counts(self) -> dict[str, int]:
        """Return the number of files of each owner."""
        return await count_by_owner(self._tables, "files")

    async def list(self, owner: str, query: FileQuery) -> Page[StoredFile] | None:
        """Return a page of the owner's files, ordered by creation time, or None when `after` is not a file of the
        owner."""
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
        """Insert the file's row and delete its content's row in `pending_blobs`, in one transaction.

        Raises `OwnerFull`, `ContentSwept`, or an error of `IdempotencyStore.make` because of the idempotency key
        `once`.
        """
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
                raise OwnerFull(
                    self._limit or 0, "files.owner_bytes", "files, including this one,", "Delete files"
                ) from None
            raise ContentSwept from None

    async def check(self, room: Callable[[int], Awaitable[None]], size: int, once: OnceOnly | None) -> None:
        """Check that the owner may store a new file of `size` bytes. The callback `room` makes the check and raises
        `OwnerFull`. This method raises `OwnerFull` too, unless the idempotency key `once` is in use. If the key is in
        use, raises the errors of `IdempotencyStore.make`."""
        try:
            await room(size)
        except OwnerFull:
            if once is not None:
                await self._keys.explain(once)
            raise

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete the file. Returns False when the file does not exist.

        This method also deletes the content. If the storage fails, the next sweep deletes the content. The docstring of
        `BlobReader` describes how the deletion affects a reader that has the file open."""
        kept = await self._found(owner, file_id)
        if kept is None:
            return False
        named = {"owner": owner, "id": file_id, "blob": kept.blob}
        if not await run_required(self._tables, Statement(DELETE, named, rows=1), Statement(LET_GO, named)):
            return False
        await self._pending.forget(kept.blob)
        return True

    async def used(self, owner: str) -> int:
        """Return the bytes that the owner's files use together. Each file counts as at least `LEAST_ROOM` bytes."""
        rows = await self._tables.fetch(self._sql.used, {"owner": owner})
        return int(rows[0][0]) if rows else 0

    async def stored_bytes(self) -> int:
        """Return the total bytes of all owners' files."""
        return int((await self._tables.fetch(KEPT, {}))[0][0])

    async def sweep(self) -> tuple[int, int]:
        """Delete expired files, and uploaded contents that belong to no file (pending blobs with an expired lease).
        Returns the number of deleted files and the number of deleted contents. Any process may run a sweep at any
        time."""
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
    """A file during its upload. If `keep` does not return successfully, the store deletes the uploaded content.

    A caller writes the chunks as they arrive:

        async with files.uploading() as upload:
            await upload.write(chunk)
            file = await upload.keep(owner, fields)
    """

    def __init__(self, files: FileStore, blob: PendingBlob) -> None:
        self._files = files
        self.blob = blob

    @property
    def size(self) -> int:
        """The number of bytes written so far."""
        return self.blob.size

    async def write(self, data: bytes) -> None:
        """Append these bytes to the file's content. Raises `StoreError` when the storage fails, or when a sweep has
        deleted this upload because it stalled for too long."""
        await self.blob.write(data)

    async def keep(
        self,
        owner: str,
        fields: FileFields,
        once: OnceOnly | None = None,
        *,
        check: Callable[[int], Awaitable[None]] | None = None,
    ) -> StoredFile:
        """Create the owner's file from the uploaded content. The file is durable when this method returns.

        `check` gets the file's size and raises `OwnerFull` if the file does not fit into a limit. The store calls
        `check` before it creates the file.

        Raises `OwnerFull`. Raises `AlreadyMade` when an earlier request with the same idempotency key created a
        file with the same fields and content. Raises an `ApiError` when a different request uses the key (422), or when
        the same request still runs (409)."""
        blob = await self.blob.seal()
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
            # The content is part of the request's fingerprint, and its hash is known only after the upload.
            once = replace(once, fingerprint=f"{once.fingerprint}-{blob.sha256}")
        if check is not None:
            await self._files.check(check, blob.size, once)
        self.blob.settled = True
        try:
            # With `settled`, the upload's end does not delete the content. The content must stay while the outcome of
            # the insert is unknown.
            await to_the_end(self._files.insert(owner, FileRow(file, blob.key), once))
        except ContentSwept:
            self.blob.settled = False
            raise self.blob.lost() from None
        except (AlreadyMade, ApiError):
            self.blob.settled = False
            raise
        return file


class OpenedFile:
    """Implements `OpenFile`: a file whose content is open for reading."""

    def __init__(self, file: StoredFile, content: BlobReader) -> None:
        self.file = file
        self._content = content

    @property
    def path(self) -> Path | None:
        """The path of the content on this machine's disk, or None if the content is in object storage."""
        return self._content.path

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Read at most `limit` bytes from offset `start`. Without `limit`, read up to the end."""
        return await self._content.read(start, max(0, self._content.size - start) if limit is None else limit)

    async def aclose(self) -> None:
        """Close the file's content."""
        await self._content.aclose()


def _kept(row: Row) -> FileRow:
    """Convert a row with the columns `COLUMNS` to a `FileRow`."""
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
    """Round a time in seconds to the milliseconds that the database stores."""
    return round(seconds * 1000) / 1000
