"""Uploaded files: their values, and the ports for their contents.

Lives here: what a file is, and the ports `OpenFile` and `BlobStore` (contents alone). Not here: rows and contents
together (`stores/files.py`), disks and object storage (`stores/blobs/`), the HTTP side (`api/files.py`).

A content and its row lie in two places that no transaction spans. So every content that is not (or no longer) a file's
is a *pending blob*, a row beside the files', and every step is one that a crash may follow:

    upload   pending row, with a lease → content → sealed → the file's row comes and the pending row goes, in one unit
    delete   the file's row goes and a pending row comes, in one unit → content gone → pending row gone
    sweep    pending rows whose lease is over are taken: no file can be made of them → content gone → pending row gone

Whoever uploads renews the lease until the upload is over, so a sweep never takes what lives, however slow it is. The
lease is by the database's clock.

Invariant: a file is there whole or not at all: its row comes after its content is durable, and goes before it; nothing
lies in a `BlobStore` that neither a file's row nor a pending row names. An expired file does not exist.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Protocol


class OwnerStorageFull(Exception):
    """The owner's files would be larger than they may be together."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A content that is kept: `size` in bytes, `sha256` in hexadecimal digits."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileFields:
    """What a client says of a file. `name` is a plain file name, `media_type` in lower case without parameters.

    `created_at` and `expires_at` are in seconds since the epoch.
    """

    id: str
    name: str
    purpose: str
    media_type: str
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file without its content."""

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
    """One page of a list: `after` is a file's id, `descending` is newest first."""

    limit: int = 10_000
    after: str | None = None
    purpose: str | None = None
    descending: bool = True


class BlobWriter(Protocol):
    """A content on its way in. When its `async with` ends nothing is written any more; what was written stays until
    it is deleted by its key, sealed or not."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    async def write(self, data: bytes) -> None:
        """Append."""

    async def seal(self) -> Blob:
        """Make it durable under its key. Nothing can be read of it before."""


class BlobReader(Protocol):
    """An open content. On a disk it stays readable although it is deleted meanwhile; elsewhere what was not read by
    then is a `StoreError`."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine's disk, if it does, for processes that read it themselves."""

    async def read(self, start: int, limit: int) -> bytes:
        """Bytes from `start`: `limit` of them unless the content ends before. Raises `StoreError`."""

    async def aclose(self) -> None:
        """Let it go."""


def new_blob_key() -> str:
    """A key for a new content, which no other has: 48 hexadecimal digits."""
    return token_hex(24)


class BlobStore(Protocol):
    """Contents by key, shared by any number of processes. It knows nothing of who wants a content: whoever begins one
    has noted its key before (`new_blob_key`).

    Every method raises `StoreError` when the storage cannot do it; none blocks the event loop, and each ends in time.
    """

    def writing(self, key: str) -> AbstractAsyncContextManager[BlobWriter]:
        """Begin a content under a key that was never used."""

    async def open(self, key: str) -> BlobReader:
        """Open a content; one that is not there is a `StoreError`."""

    async def delete(self, key: str) -> None:
        """Delete all that lies there of a content, whole or unfinished; nothing there is no error."""

    async def aclose(self) -> None:
        """Let what was begun end."""


class OpenFile(Protocol):
    """A file with its content open; whoever opened it closes it."""

    @property
    def file(self) -> StoredFile:
        """What is known of it."""

    @property
    def path(self) -> Path | None:
        """As `BlobReader.path`."""

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        """Bytes from `start`; without `limit` all the rest. Raises `StoreError`."""

    async def aclose(self) -> None:
        """Let it go."""
