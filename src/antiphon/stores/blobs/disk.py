"""Implements `BlobStore` with files in a folder.

Lives here: writing, opening, deleting and listing blobs. Not here: deciding which blobs to delete (`pending.py`).

A writer writes a blob to `new/<key>`, flushes the file to disk, and renames it to `ab/cd/<key>`. The folder names `ab`
and `cd` are the first four digits of the key.

Invariants: a file at `ab/cd/<key>` is complete. One lock guards the use and the closing of a file descriptor. Without
the lock, a cancelled caller's write could hit a closed descriptor whose number now belongs to another file. All disk
operations, including closing, run in this module's thread pool, so a slow disk never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from antiphon.engine.ports.files import Blob
from antiphon.engine.waiting import to_the_end
from antiphon.errors import StoreError, file_failure

T = TypeVar("T")

FILES_FOLDER = "files"
"""The subfolder of the data folder that contains blobs."""

KEY = re.compile(r"[0-9a-f]{48}")
_NEW = "new"
# Flushing half a gigabyte takes seconds, so blobs have a separate thread pool.
_THREADS = 8


def flush_folder(folder: Path) -> None:
    """Make creations, renames and deletions in the folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checked_key(key: str) -> str:
    """Return the key unchanged. Raises `StoreError` unless the key has the form that `new_blob_key` creates: 48
    hexadecimal digits."""
    if not KEY.fullmatch(key):
        raise StoreError("The database row of a file is damaged: its storage key is not 48 hexadecimal digits.")
    return key


def content_place(folder: Path, key: str) -> Path:
    """Return the path of a complete blob in a folder: `ab/cd/<key>`."""
    return folder / key[:2] / key[2:4] / key


class DiskBlobs:
    """A `BlobStore` in one folder, which any number of processes may share."""

    def __init__(self, folder: Path, *, of_several: bool = False) -> None:
        """`of_several`: whether several machines with separate folders share the database. In that case a missing blob
        may be on another machine, and `open` raises `StoreError` with the reason `elsewhere`."""
        self._folder = folder
        self._of_several = of_several
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="antiphon-files")

    async def aclose(self) -> None:
        """Wait for the running disk operations. Later operations raise `StoreError`."""
        await asyncio.to_thread(self._threads.shutdown)

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[DiskBlobWriter]:
        """Begin the upload of a blob under a new key."""
        writer = DiskBlobWriter(self, self._folder / _NEW / key, self.place(key))
        try:
            await self.run("Beginning a file", writer.begin)
            yield writer
        finally:
            await self.finish(writer.close)

    async def open(self, key: str) -> DiskBlobReader:
        """Open a blob for reading. Raises `StoreError` when the blob does not exist."""
        opening = asyncio.ensure_future(self.run("Opening a file", lambda: DiskBlobReader(self, self.place(key))))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The caller was cancelled: close the file as soon as the thread has opened it.
            opening.add_done_callback(self._close_opened)
            raise
        except StoreError as error:
            if self._of_several and isinstance(error.__cause__, FileNotFoundError):
                raise StoreError(str(error), reason="elsewhere") from error.__cause__
            raise

    async def delete(self, key: str) -> None:
        """Delete the complete file and the unfinished file (draft) of a blob, if they exist."""
        places = (self.place(key), self._folder / _NEW / key)

        def delete() -> None:
            for place in places:
                place.unlink(missing_ok=True)

        await self.run("Deleting a file", delete)

    async def keys(self, at_once: int = 500) -> AsyncIterator[list[str]]:
        """Yield the keys of all blobs, complete and unfinished, in batches of about `at_once`. The SQLite backend uses
        the keys to find blobs that an old version of Antiphon stored without rows in the table `pending_blobs`."""
        shelves = self._shelves()

        def some() -> list[str]:
            found: list[str] = []
            for shelf in shelves:
                with contextlib.suppress(FileNotFoundError):
                    found += [name for name in os.listdir(shelf) if KEY.fullmatch(name)]
                if len(found) >= at_once:
                    break
            return found

        while found := await self.run("Looking through files", some):
            yield found

    def place(self, key: str) -> Path:
        """Return the path of a complete blob. Raises `StoreError` for an invalid key."""
        return content_place(self._folder, checked_key(key))

    async def run(self, doing: str, action: Callable[[], T]) -> T:
        """Run `action` in the thread pool. `doing` names the operation in errors, as a gerund. Raises `StoreError` when
        `action` raises `OSError`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except OSError as error:
            raise file_failure(f"{doing} failed in {self._folder}", error) from error
        except RuntimeError as error:
            raise StoreError("The store is closed.") from error

    async def finish(self, close: Callable[[], None]) -> None:
        """Run `close` in the thread pool, because it waits for a running write or flush. `close` completes even if the
        caller is cancelled."""
        try:
            closing = asyncio.get_running_loop().run_in_executor(self._threads, close)
        except RuntimeError:
            # The thread pool is shut down, so no operation is running and `close` does not block.
            close()
            return
        await to_the_end(closing)

    def _close_opened(self, opened: asyncio.Future[DiskBlobReader]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            with contextlib.suppress(RuntimeError):
                self._threads.submit(opened.result().close)

    def _shelves(self) -> Iterator[Path]:
        yield self._folder / _NEW
        for first in sorted(self._folder.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(first.glob("[0-9a-f][0-9a-f]"))


class DiskBlobWriter:
    """The running upload of one blob."""

    def __init__(self, blobs: DiskBlobs, draft: Path, place: Path) -> None:
        """`draft`: the path of the file during the upload. `place`: the path of the complete blob."""
        self._blobs = blobs
        self._draft = draft
        self._place = place
        self._using = threading.Lock()
        self._hash = hashlib.sha256()
        self.size = 0
        self._descriptor = -1
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises `StoreError`."""
        self.size += len(data)
        await self._blobs.run("Writing a file", lambda: self._write(data))

    async def seal(self) -> Blob:
        """Make the blob durable and readable under its key. Returns the blob's size and SHA-256. Raises
        `StoreError`."""
        return await self._blobs.run("Storing a file", self._seal)

    def begin(self) -> None:
        """Create the draft file. The caller runs this method in the thread pool, because it waits for the disk."""
        with self._using:
            # If the caller was cancelled before a thread was free, the caller has already closed this writer and
            # deletes the blob.
            if self._closed:
                return
            _make_folder(self._draft.parent.parent)
            _make_folder(self._draft.parent)
            self._descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the file. Waits for a running write or flush, so never call this method in the event loop."""
        with self._using:
            self._closed = True
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _write(self, data: bytes) -> None:
        with self._using:
            self._check()
            self._hash.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def _seal(self) -> Blob:
        with self._using:
            self._check()
            os.fsync(self._descriptor)
            place = self._place
            _make_folder(place.parent.parent)
            _make_folder(place.parent)
            self._draft.rename(place)
            # A parent folder may be new as well.
            for folder in (place.parent, place.parent.parent, place.parent.parent.parent):
                flush_folder(folder)
            return Blob(place.name, self.size, self._hash.hexdigest())

    def _check(self) -> None:
        if self._descriptor < 0:
            raise StoreError("This file is closed: its upload has already ended.")


class DiskBlobReader:
    """A blob on disk that is open for reading."""

    def __init__(self, blobs: DiskBlobs, path: Path) -> None:
        self._blobs = blobs
        self.path = path
        self._using = threading.Lock()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    async def read(self, start: int, limit: int) -> bytes:
        """Return `limit` bytes from offset `start`, or fewer at the end of the file. Raises `StoreError`."""
        return await self._blobs.run("Reading a file", lambda: self._read(start, limit))

    async def aclose(self) -> None:
        """Wait for a running read, then close the file."""
        await self._blobs.finish(self.close)

    def close(self) -> None:
        """Close the file from a thread without an event loop."""
        with self._using:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _read(self, start: int, limit: int) -> bytes:
        with self._using:
            if self._descriptor < 0:
                raise StoreError("This file is closed: it cannot be read any more.")
            parts = []
            while limit > 0 and (part := os.pread(self._descriptor, limit, start)):
                parts.append(part)
                start += len(part)
                limit -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _make_folder(folder: Path) -> None:
    # Callers create each parent folder separately, because `parents=True` would create parents that all users can read.
    folder.mkdir(mode=0o700, exist_ok=True)
