"""Contents of files on disk: the `BlobStore` over a folder.

Lives here: writing, opening, deleting, and finding what nobody owns. Not here: which contents are wanted (`files.py`).

A content is written into `new/`, flushed to disk, and renamed to `ab/cd/<key>`. Its writer holds a lock on the file
from the first byte until its row is there (a lock belongs to the open file, so the rename does not matter), and the
system gives it back when the process dies: whoever gets the lock of a content without a row has found an orphan, and
never one that is still on its way.

Invariants: a file under its key is whole; a lock of a file is waited for by nobody; a descriptor is used and closed
under one lock, so that a cancelled caller's last write never hits another file; all that touches the disk, closing
too, is done in the threads here: no slow disk stops the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Protocol, TypeVar

from antiphon.engine.ports.files import Blob
from antiphon.errors import StoreError, StoreReason

T = TypeVar("T")
C = TypeVar("C", bound="_Closing")


class _Closing(Protocol):
    def close(self) -> None: ...


_KEY = re.compile(r"[0-9a-f]{48}")
_NEW = "new"
_TRIES = 10
_SOME = 500
# Flushing half a gigabyte takes seconds: contents have threads of their own.
_THREADS = 8


class DiskBlobs:
    """`BlobStore` in one folder, which any number of processes may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="antiphon-files")

    async def aclose(self) -> None:
        """Let what was begun end."""
        await asyncio.to_thread(self._threads.shutdown)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[DiskBlobWriter]:
        """Begin a new content."""
        writer = await self._made("Beginning a file", lambda: DiskBlobWriter(self, self._folder))
        try:
            yield writer
        finally:
            await self.finish(writer.close)

    async def open(self, key: str) -> DiskBlobReader:
        """Open a content; one that is not there is a `StoreError`."""
        return await self._made("Opening a file", lambda: DiskBlobReader(self, self.place(key)))

    async def delete(self, key: str) -> None:
        """Delete a content, if it is there."""
        await self.run("Deleting a file", lambda: self.place(key).unlink(missing_ok=True))

    async def keys(self) -> AsyncIterator[list[str]]:
        """All contents, whole and unfinished, some hundreds at a time."""
        shelves = self._shelves()

        def some() -> list[str]:
            found: list[str] = []
            for shelf in shelves:
                with contextlib.suppress(FileNotFoundError):
                    found += [name for name in os.listdir(shelf) if _KEY.fullmatch(name)]
                if len(found) >= _SOME:
                    break
            return found

        while found := await self.run("Looking through files", some):
            yield found

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[DiskClaim | None]:
        """The content, unless a writer has it or it is gone. Nobody else gets it meanwhile."""
        claim = await self._made("Looking through files", lambda: DiskClaim(self, self._paths(key)))
        try:
            yield claim if claim.path is not None else None
        finally:
            await self.finish(claim.close)

    def place(self, key: str) -> Path:
        """Where a content lies once it is whole."""
        if not _KEY.fullmatch(key):
            raise StoreError("A stored file has a key that is none of ours.")
        return self._folder / key[:2] / key[2:4] / key

    async def run(self, doing: str, action: Callable[[], T]) -> T:
        """Run this in a thread; its failures are a `StoreError`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else type(error).__name__
            reason: StoreReason = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
            raise StoreError(f"{doing} failed in {self._folder}: {cause}.", reason=reason) from error
        except RuntimeError as error:
            raise StoreError("The store is closed.") from error

    async def finish(self, close: Callable[[], None]) -> None:
        """Close in a thread, since a write or a flush that is not over holds it up; done even if the caller leaves."""
        try:
            closing = asyncio.get_running_loop().run_in_executor(self._threads, close)
        except RuntimeError:
            # The store is closed, and nothing is under way any more.
            close()
            return
        await asyncio.shield(closing)

    async def _made(self, doing: str, make: Callable[[], C]) -> C:
        """The same for what must be closed: when nobody waits for it any more, it is."""
        making = asyncio.ensure_future(self.run(doing, make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._close_made)
            raise

    def _close_made(self, made: asyncio.Future[C]) -> None:
        if not made.cancelled() and made.exception() is None:
            with contextlib.suppress(RuntimeError):
                self._threads.submit(made.result().close)

    def _shelves(self) -> Iterator[Path]:
        yield self._folder / _NEW
        for first in sorted(self._folder.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(first.glob("[0-9a-f][0-9a-f]"))

    def _paths(self, key: str) -> tuple[Path, ...]:
        return self.place(key), self._folder / _NEW / key


class DiskClaim:
    """A content that no writer has; `path` is None when there is none."""

    def __init__(self, blobs: DiskBlobs, paths: tuple[Path, ...]) -> None:
        self._blobs = blobs
        self._descriptor = -1
        self.path: Path | None = None
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if _lock(self._descriptor):
                    self.path = path
                return

    async def delete(self) -> None:
        """Delete it."""
        path = self.path
        if path is not None:
            await self._blobs.run("Deleting a file", lambda: path.unlink(missing_ok=True))

    def close(self) -> None:
        """Let it go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class DiskBlobWriter:
    """A content on its way in."""

    def __init__(self, blobs: DiskBlobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._using = threading.Lock()
        self._hash = hashlib.sha256()
        self._size = 0
        self._key, self._descriptor = _begin(folder / _NEW)
        self._path = folder / _NEW / self._key
        self._kept = False

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    async def write(self, data: bytes) -> None:
        """Append."""
        self._size += len(data)
        await self._blobs.run("Writing a file", lambda: self._write(data))

    async def seal(self) -> Blob:
        """Make it durable under its key. A caller that is gone before it hears of that keeps nothing."""
        blob = await self._blobs.run("Storing a file", self._seal)
        self._kept = True
        return blob

    def discard(self) -> None:
        """What was sealed is not wanted after all."""
        self._kept = False

    def close(self) -> None:
        """Give the lock back; what nobody heard of is gone. Waits for a write or a flush, so never in the loop."""
        with self._using:
            if self._descriptor < 0:
                return
            if not self._kept:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
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
            place = self._blobs.place(self._key)
            _make_folder(place.parent.parent)
            _make_folder(place.parent)
            self._path.rename(place)
            self._path = place
            # A folder on the way may be new as well.
            for folder in (place.parent, place.parent.parent, self._folder):
                _flush(folder)
            return Blob(self._key, self._size, self._hash.hexdigest())

    def _check(self) -> None:
        if self._descriptor < 0:
            raise StoreError("This file is closed.")


class DiskBlobReader:
    """An open content."""

    def __init__(self, blobs: DiskBlobs, path: Path) -> None:
        self._blobs = blobs
        self._path = path
        self._using = threading.Lock()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._size

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    async def read(self, start: int, limit: int) -> bytes:
        """Bytes from `start`, `limit` of them unless the content ends before."""
        return await self._blobs.run("Reading a file", lambda: self._read(start, limit))

    async def aclose(self) -> None:
        """Let it go; waits for a read that is not over."""
        await self._blobs.finish(self.close)

    def close(self) -> None:
        """The same without an event loop."""
        with self._using:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _read(self, start: int, limit: int) -> bytes:
        with self._using:
            if self._descriptor < 0:
                raise StoreError("This file is closed.")
            parts = []
            while limit > 0 and (part := os.pread(self._descriptor, limit, start)):
                parts.append(part)
                start += len(part)
                limit -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _begin(folder: Path) -> tuple[str, int]:
    """A new file with its lock taken: the key and the descriptor."""
    _make_folder(folder.parent)
    _make_folder(folder)
    for _ in range(_TRIES):
        key = token_hex(24)
        descriptor = os.open(folder / key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # A sweep may see the file before it is locked; then the file is the sweep's.
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return key, descriptor
        os.close(descriptor)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _make_folder(folder: Path) -> None:
    # One by one: `parents` would make those on the way for everybody.
    folder.mkdir(mode=0o700, exist_ok=True)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
