"""Defines uploaded files as values, and the ports that store their contents.

Lives here: the values of a file, and the ports `OpenFile` and `BlobStore` (contents only). Not here: the code that
writes rows and contents together (`stores/files.py`), disks and object storage (`stores/blobs/`), the HTTP endpoints
(`api/files.py`).

A *content* is the bytes of one file. No transaction covers both a content and the row of its file, because the storage
of contents is separate from the database. A content that does not belong to a file yet, or no longer belongs to a file,
is a *pending blob*. A separate table has a pending row for each pending blob. The data stays consistent if the process
crashes after any of the steps below. An upload takes these steps:

1. Add a pending row with a lease.
2. Write the content and make it durable.
3. Add the file's row and delete the pending row, in one transaction.

A deletion takes these steps:

1. Delete the file's row and add a pending row, in one transaction.
2. Delete the content.
3. Delete the pending row.

A sweep takes these steps:

1. Claim the pending rows whose lease has expired. After that, no upload can turn the contents of these rows into files.
2. Delete the contents that the claimed rows name.
3. Delete the claimed rows.

The uploading process renews the lease until the upload ends. So a sweep never deletes the content of a running upload,
however slow the upload is. The lease uses the database's clock.

Invariants: A file exists whole or not at all. The store adds the file's row after the content is durable, and deletes
the row before the content. A file's row or a pending row names every content in a `BlobStore`. Every read treats an
expired file as missing.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored content. `key` comes from `new_blob_key`, `size` is in bytes, `sha256` has 64 hexadecimal digits."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileFields:
    """The properties of a new file, without its size and hash.

    `id` begins with `file-`. `name` is a plain file name. `media_type` is in lower case, without parameters.
    `created_at` and `expires_at` are in seconds since the epoch. If `expires_at` is None, the file never expires.
    """

    id: str
    name: str
    purpose: str
    media_type: str
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The properties of a stored file: the fields of `FileFields`, the size in bytes, and the SHA-256 (hexadecimal)."""

    id: str
    name: str
    purpose: str
    media_type: str
    size: int
    sha256: str
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Selects one page of a list of files. `after` is the id of the previous page's last file. If `descending` is true,
    the newest file comes first.
    """

    limit: int = 10_000
    after: str | None = None
    purpose: str | None = None
    descending: bool = True


class BlobWriter(Protocol):
    """Writes one content. No write happens after the `async with` block ends.

    The store keeps the written bytes until a caller deletes the content by its key, even if `seal` was not called.
    """

    @property
    def size(self) -> int:
        """The number of bytes written so far."""

    async def write(self, data: bytes) -> None:
        """Append these bytes."""

    async def seal(self) -> Blob:
        """Make the content durable under its key, and return its size and hash. No reader can open the content before
        this call."""


class BlobReader(Protocol):
    """Reads an open content. If another caller deletes the content, an open reader can still read it from a disk. From
    object storage, a read after the deletion raises `StoreError`."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    @property
    def path(self) -> Path | None:
        """The path of the content on this machine's disk, for other processes. None when the content is not on this
        disk."""

    async def read(self, start: int, limit: int) -> bytes:
        """Read `limit` bytes from the byte offset `start` on, or fewer at the end of the content. Raises
        `StoreError`."""

    async def aclose(self) -> None:
        """Close the content."""


def new_blob_key() -> str:
    """Generate a unique key for the content of a new file: 48 hexadecimal digits."""
    return token_hex(24)


class BlobStore(Protocol):
    """Stores contents by key. Any number of processes share the storage. The storage does not record owners. The caller
    stores the key (`new_blob_key`) in a row before it writes the content. Every method raises `StoreError` when the
    storage fails. No method blocks the event loop. Every call ends in bounded time.
    """

    def writing(self, key: str) -> AbstractAsyncContextManager[BlobWriter]:
        """Create a writer that stores the content of a file under this new key."""

    async def open(self, key: str) -> BlobReader:
        """Open a content. Raises `StoreError` if the content does not exist."""

    async def delete(self, key: str) -> None:
        """Delete a content, whole or unfinished. The deletion of a content that does not exist is no error."""

    async def aclose(self) -> None:
        """Wait until all running operations end."""


class OpenFile(Protocol):
    """A stored file that a caller has opened to read its content. The caller that opened the file must close it."""

    @property
    def file(self) -> StoredFile:
        """The file's stored properties."""

    @property
    def path(self) -> Path | None:
        """The path on this machine's disk, as in `BlobReader.path`."""

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Read `limit` bytes from `start` on. Without `limit`, read to the end. Raises `StoreError`."""

    async def aclose(self) -> None:
        """Close the file."""
