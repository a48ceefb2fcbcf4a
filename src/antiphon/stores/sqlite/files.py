"""What it means to keep an uploaded file: the `FileStore` over SQLite and any `BlobStore`.

Lives here: the SQL by name, the order of row and content, and the sweep of what expired. Not here: contents that are no
file's (`stores/blobs/pending.py`), where contents lie (`stores/blobs/`), threads, connections and transactions.

Invariant: a row is written after its content is durable and deleted before it; in the unit in which it comes its
pending row goes, and the other way round. So whatever moment a process dies at, no row is without its content, and no
content without a row.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import (
    BlobReader,
    BlobStore,
    FileFields,
    FilePage,
    FileQuery,
    NoRoom,
    StoredFile,
)
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.running.waiting import to_the_end
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, now
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlob, PendingBlobs
from antiphon.stores.sqlite.database import milliseconds
from antiphon.stores.sqlite.idempotency import SqliteIdempotency
from antiphon.stores.sqlite.pending_blobs import KEEP, LET_GO, ListBlobs, SqlitePendingRows
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.writer import RowsMissing, SqliteWriter, Statement

LEAST_ROOM = 4096
"""What a file takes at least: an empty one fills a disk as well."""

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

EXPIRED = "SELECT owner, id, blob FROM files WHERE expires_at <= :at LIMIT :limit"
_GOING = "FROM files WHERE blob IN (SELECT value FROM json_each(:blobs)) AND expires_at <= :at"
LET_GO_EXPIRED = f"""
INSERT INTO pending_blobs (key, lease_until) SELECT blob, 0 {_GOING} ON CONFLICT (key) DO UPDATE SET lease_until = 0
"""
DELETE_EXPIRED = f"DELETE {_GOING} RETURNING blob"

_BATCH = 200
_EVER = (1 << 63) - 1


class SqliteFileStore:
    """`FileStore` on a writer and readers that are somebody else's to close; the contents' storage is its own."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        blobs: BlobStore,
        *,
        owner_bytes: int | None = None,
        clock: Clock = now,
        keys: SqliteIdempotency | None = None,
        upload_lease: float = UPLOAD_LEASE_SECONDS,
        list_before: ListBlobs | None = None,
    ) -> None:
        """`owner_bytes`: the most that all files of one owner may take. `upload_lease`: seconds after which an upload
        that was not heard of counts as broken off. `list_before`: lists where
        contents from before pending blobs may lie."""
        self._keys = keys or SqliteIdempotency(writer, readers)
        self._writer = writer
        self._readers = readers
        self._blobs = blobs
        self._rows = SqlitePendingRows(writer, readers)
        self._pending = PendingBlobs(self._rows, blobs, upload_lease)
        self._lease = upload_lease
        self._list_before = list_before
        self._limit = owner_bytes
        self._clock = clock
        self.on_expired: Callable[[str, str], Awaitable[None]] | None = None
        """Called with owner and id before an expired file goes."""

    async def aclose(self) -> None:
        """Let reads and writes of contents end."""
        await self._pending.aclose()

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[SqliteFileUpload]:
        """Begin a new file."""
        async with self._pending.uploading() as blob:
            yield SqliteFileUpload(self._keys, blob, self._limit)

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        """The file, or None."""
        row = await self._row(owner, file_id)
        return _file(row) if row is not None else None

    async def open(self, owner: str, file_id: str) -> SqliteOpenFile | None:
        """The file with its content open, or None."""
        row = await self._row(owner, file_id)
        if row is None:
            return None
        try:
            return SqliteOpenFile(_file(row), await self._blobs.open(row["blob"]))
        except StoreError:
            # Deleted between the two: then the row is gone by now.
            if await self._row(owner, file_id) is None:
                return None
            raise

    async def list(self, owner: str, query: FileQuery) -> FilePage | None:
        """A page by time of creation, or None when `after` is no file of the owner."""
        after_at, after = (_EVER, "") if query.descending else (-1, "")
        if query.after is not None:
            row = await self._row(owner, query.after)
            if row is None:
                return None
            after_at, after = row["created_at"], row["id"]
        rows = await self._readers.fetch(
            LIST_BACKWARD if query.descending else LIST_FORWARD,
            {
                "owner": owner,
                "at": self._now(),
                "purpose": query.purpose,
                "after_at": after_at,
                "after": after,
                "limit": query.limit + 1,
            },
        )
        return FilePage(tuple([_file(row) for row in rows[: query.limit]]), has_more=len(rows) > query.limit)

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete the file; False when there is none."""
        row = await self._row(owner, file_id)
        if row is None:
            return False
        named = {"owner": owner, "id": file_id, "at": self._now()}
        try:
            await self._writer.run([Statement(DELETE_FILE, named, rows=1), Statement(LET_GO, {"blob": row["blob"]})])
        except RowsMissing:
            return False
        await self._pending.forget(row["blob"])
        return True

    async def used(self, owner: str) -> int:
        """What all the owner's files take together, in bytes."""
        return int((await self._readers.fetch(USED, {"owner": owner}))[0][0])

    async def kept_bytes(self) -> int:
        """The contents of all files of all owners."""
        return int((await self._readers.fetch(KEPT, {}, own=True))[0][0])

    async def sweep(self) -> tuple[int, int]:
        """Delete expired files, and contents that are no file's any more; how many of each."""
        if self._list_before is not None:
            await self._rows.note_those_of_before(self._list_before, self._lease)
        left = await self._pending.sweep()
        return await self._sweep_expired(), left

    async def _sweep_expired(self) -> int:
        gone = 0
        while rows := await self._readers.fetch(EXPIRED, {"at": self._now(), "limit": _BATCH}):
            if self.on_expired is not None:
                for row in rows:
                    await self.on_expired(row["owner"], row["id"])
            named = {"blobs": json.dumps([row["blob"] for row in rows]), "at": self._now()}
            went: list[tuple[str]] = []
            await self._writer.run([Statement(LET_GO_EXPIRED, named), Statement(DELETE_EXPIRED, named, into=went)])
            for (blob,) in went:
                await self._pending.forget(blob)
            gone += len(went)
        return gone

    async def _row(self, owner: str, file_id: str) -> Row | None:
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": file_id, "at": self._now()})
        return rows[0] if rows else None

    def _now(self) -> int:
        return milliseconds(self._clock())


class SqliteFileUpload:
    """A file on its way in."""

    def __init__(self, keys: SqliteIdempotency, blob: PendingBlob, limit: int | None) -> None:
        self._keys = keys
        self._blob = blob
        self._limit = limit

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._blob.size

    async def write(self, data: bytes) -> None:
        """Append to the content. Raises `StoreError`, also for an upload that a sweep took."""
        await self._blob.write(data)

    async def keep(self, owner: str, fields: FileFields, once: OnceOnly | None = None) -> StoredFile:
        """Make it the owner's file. Raises `NoRoom`, `AlreadyMade`."""
        blob = await self._blob.seal()
        created = milliseconds(fields.created_at)
        expires = milliseconds(fields.expires_at) if fields.expires_at is not None else None
        named = {
            "owner": owner,
            "id": fields.id,
            "name": fields.name,
            "purpose": fields.purpose,
            "media_type": fields.media_type,
            "size": blob.size,
            "sha256": blob.sha256,
            "created_at": created,
            "expires_at": expires,
            "blob": blob.key,
            "limit": self._limit,
        }
        try:
            unit = [Statement(INSERT_FILE, named, rows=1), Statement(KEEP, named, rows=1)]
            undo = [Statement(DELETE_UNTOLD, named), Statement(LET_GO, named)]
            if once is not None:
                # The content belongs to the request; only now it is known.
                once = replace(once, fingerprint=f"{once.fingerprint}-{blob.sha256}")
            self._blob.settled = True
            # Until it has ended the content is neither a file's nor nobody's.
            await to_the_end(self._keys.make(once, fields.id, unit, undo))
        except RowsMissing:
            self._blob.settled = False
            if await self._blob.is_held():
                raise NoRoom from None
            raise self._blob.lost() from None
        except (AlreadyMade, ApiError):
            self._blob.settled = False
            raise
        return StoredFile(
            fields.id,
            fields.name,
            fields.purpose,
            fields.media_type,
            blob.size,
            blob.sha256,
            created / 1000,
            expires / 1000 if expires is not None else None,
        )


class SqliteOpenFile:
    """A file with its content open."""

    def __init__(self, file: StoredFile, content: BlobReader) -> None:
        self._file = file
        self._content = content

    @property
    def file(self) -> StoredFile:
        """What is known of it."""
        return self._file

    @property
    def path(self) -> Path | None:
        """Where its content lies on this machine's disk, if it does."""
        return self._content.path

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Bytes from `start`; without `limit` all the rest."""
        return await self._content.read(start, max(0, self._content.size - start) if limit is None else limit)

    async def aclose(self) -> None:
        """Let it go."""
        await self._content.aclose()

    async def __aenter__(self) -> SqliteOpenFile:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()


def _file(row: Row) -> StoredFile:
    return StoredFile(
        id=row["id"],
        name=row["name"],
        purpose=row["purpose"],
        media_type=row["media_type"],
        size=row["size"],
        sha256=row["sha256"],
        created_at=row["created_at"] / 1000,
        expires_at=row["expires_at"] / 1000 if row["expires_at"] is not None else None,
    )
