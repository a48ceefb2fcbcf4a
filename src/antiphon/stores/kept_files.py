"""What it means to keep an uploaded file: the `FileStore` over any backend's rows and any `BlobStore`.

Lives here: the order of row and content, and the sweep of what expired. Not here: the rows (`sqlite/files.py`,
`postgres/files.py`), contents that are no file's (`blobs/pending.py`), where contents lie (`blobs/`).

Invariant: a row is written after its content is durable and deleted before it; in the unit in which it comes its
pending row goes, and the other way round. So whatever moment a process dies at, no row is without its content, and no
content without a row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

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
from antiphon.stores.blobs.pending import PendingBlob, PendingBlobs
from antiphon.stores.pages import Row

LEAST_ROOM = 4096
"""What a file takes at least: an empty one fills a disk as well."""
_BATCH = 200


class ContentTaken(Exception):
    """A sweep took the content, of which no file can be made any more."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file and the key of its content."""

    file: StoredFile
    blob: str


class FileRows(Protocol):
    """The rows of files; expired ones do not exist. Every method raises `StoreError`."""

    async def find(self, owner: str, file_id: str) -> KeptFile | None:
        """The file, or None."""

    async def page(self, owner: str, query: FileQuery, after: StoredFile | None) -> Sequence[StoredFile]:
        """One more than `query.limit`, where there are so many, behind `after`."""

    async def insert(self, owner: str, kept: KeptFile, once: OnceOnly | None) -> None:
        """The file's row comes and its pending row goes. Raises `NoRoom`, `ContentTaken`, `AlreadyMade`, `ApiError`."""

    async def delete(self, owner: str, kept: KeptFile) -> bool:
        """The file's row goes and a pending row comes that is taken; False when there is none any more."""

    async def used(self, owner: str) -> int:
        """What the owner's files take, each at least `LEAST_ROOM`."""

    async def kept_bytes(self) -> int:
        """The sizes of all files."""

    async def expired(self, limit: int) -> Sequence[tuple[str, KeptFile]]:
        """Files whose time is over, with their owners."""

    async def delete_expired(self, blobs: Sequence[str]) -> Sequence[str]:
        """As `delete`, of those of these contents whose files' time is over; which went."""


class KeptFiles:
    """`FileStore`; the rows are somebody else's to close, the contents' storage is its own."""

    def __init__(self, files: FileRows, pending: PendingBlobs, blobs: BlobStore) -> None:
        self._files = files
        self._pending = pending
        self._blobs = blobs
        self.on_expired: Callable[[str, str], Awaitable[None]] | None = None
        """Called with owner and id before an expired file goes."""

    async def aclose(self) -> None:
        """Let reads and writes of contents end."""
        await self._pending.aclose()

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[FileUploading]:
        """Begin a new file."""
        async with self._pending.uploading() as blob:
            yield FileUploading(self._files, blob)

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        """The file, or None."""
        kept = await self._files.find(owner, file_id)
        return kept.file if kept is not None else None

    async def open(self, owner: str, file_id: str) -> OpenedFile | None:
        """The file with its content open, or None."""
        kept = await self._files.find(owner, file_id)
        if kept is None:
            return None
        try:
            return OpenedFile(kept.file, await self._blobs.open(kept.blob))
        except StoreError:
            # Deleted between the two: then the row is gone by now.
            if await self._files.find(owner, file_id) is None:
                return None
            raise

    async def list(self, owner: str, query: FileQuery) -> FilePage | None:
        """A page by time of creation, or None when `after` is no file of the owner."""
        after = None
        if query.after is not None:
            after = await self.get(owner, query.after)
            if after is None:
                return None
        found = await self._files.page(owner, query, after)
        return FilePage(tuple(found[: query.limit]), has_more=len(found) > query.limit)

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete the file; False when there is none."""
        kept = await self._files.find(owner, file_id)
        if kept is None or not await self._files.delete(owner, kept):
            return False
        await self._pending.forget(kept.blob)
        return True

    async def used(self, owner: str) -> int:
        """What all the owner's files take together, in bytes."""
        return await self._files.used(owner)

    async def kept_bytes(self) -> int:
        """The contents of all files of all owners."""
        return await self._files.kept_bytes()

    async def sweep(self) -> tuple[int, int]:
        """Delete expired files, and contents that are no file's any more; how many of each."""
        left = await self._pending.sweep()
        return await self._sweep_expired(), left

    async def _sweep_expired(self) -> int:
        gone = 0
        while rows := await self._files.expired(_BATCH):
            if self.on_expired is not None:
                for owner, kept in rows:
                    await self.on_expired(owner, kept.file.id)
            went = await self._files.delete_expired([kept.blob for _, kept in rows])
            for blob in went:
                await self._pending.forget(blob)
            gone += len(went)
        return gone


class FileUploading:
    """A file on its way in."""

    def __init__(self, files: FileRows, blob: PendingBlob) -> None:
        self._files = files
        self._blob = blob

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
            # The content belongs to the request; only now it is known.
            once = replace(once, fingerprint=f"{once.fingerprint}-{blob.sha256}")
        self._blob.settled = True
        try:
            # Until it has ended the content is neither a file's nor nobody's.
            await to_the_end(self._files.insert(owner, KeptFile(file, blob.key), once))
        except ContentTaken:
            self._blob.settled = False
            raise self._blob.lost() from None
        except (NoRoom, AlreadyMade, ApiError):
            self._blob.settled = False
            raise
        return file


class OpenedFile:
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

    async def __aenter__(self) -> OpenedFile:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()


def kept_file(row: Row) -> KeptFile:
    """The file of a row that has a column of each name."""
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
    return KeptFile(file, row["blob"])


def _as_kept(seconds: float) -> float:
    """A time as it is read back."""
    return round(seconds * 1000) / 1000
