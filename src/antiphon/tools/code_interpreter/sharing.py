"""Shares a container among requests, processes and machines: exclusive use, and snapshots of its files.

This module waits for a container, with a lock among the requests of this process and a lease among processes. This
module also defines the format of a snapshot, and checks whether this machine has the current files. `containers.py` has
the operations on a container in use, and `local.py` has the files on disk. `ContainerRows` and
`stores/blobs/pending.py` store leases and snapshots.

A machine saves a snapshot after a use that creates or changes a file. Another machine restores the snapshot before it
uses the container. A snapshot is one blob that contains all files of a container, one after the other. The container's
row has the offset of each file. A new snapshot replaces the previous one. If only one machine uses the database,
Antiphon saves no snapshots.

Snapshots contain only files. Empty folders, variables and open files are lost when a container changes machines.

Invariants: each wait has a timeout. Each lease is released, even if the task was cancelled while the store granted the
lease. Code runs only after the machine's files match the row. A row refers only to durable snapshots. A snapshot is at
most as large as a container's disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import structlog

from antiphon.engine.ports.containers import (
    ContainerContents,
    ContainerFailed,
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    ContainerRows,
    RowFile,
    SnapshotWriter,
)
from antiphon.engine.ports.files import BlobReader
from antiphon.engine.waiting import to_the_end
from antiphon.errors import StoreError
from antiphon.stores.leases import Leases
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox

_log = structlog.get_logger(__name__)

PATIENCE = 120.0
LEASE_SECONDS = 30.0
_FIRST_LOOK, _LAST_LOOK = 0.05, 0.5


_PIECE = 1 << 20


class InUse(ContainerFailed):
    """Raised when another request used the container for the whole waiting time."""

    def __init__(self) -> None:
        super().__init__("The container is in use. Try again when the code that runs in it has ended.")


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Uses:
    """The current uses of containers by this process. `process`: the name of this process in container rows."""

    def __init__(self, rows: ContainerRows, process: str, *, lease: float = LEASE_SECONDS) -> None:
        self.rows = rows
        self.leases = Leases(lease)
        self.locks: dict[str, _Lock] = {}
        self._process = process
        self._numbers = count(1)

    def users(self, container_id: str) -> int:
        """Return the number of requests of this process that use the container or wait for it."""
        held = self.locks.get(container_id)
        return held.users if held is not None else 0

    @asynccontextmanager
    async def alone(self, container_id: str, *, patience: float = PATIENCE) -> AsyncIterator[ContainerUse]:
        """Wait until no other request of this process uses the container. Inside the block, the caller reserves the
        container among processes with `ContainerUse.take`.

        `patience`: the timeout in seconds for this wait and for `take`. Raises `InUse` on a timeout."""
        held = self.locks.setdefault(container_id, _Lock())
        held.users += 1
        deadline = asyncio.get_running_loop().time() + patience
        try:
            if held.lock.locked() and not patience:
                raise InUse
            try:
                async with asyncio.timeout_at(deadline if patience else None):
                    await held.lock.acquire()
            except TimeoutError:
                raise InUse from None
            use = ContainerUse(self, f"{self._process}-{next(self._numbers)}", container_id, deadline)
            try:
                yield use
            finally:
                try:
                    await use.let_go()
                finally:
                    held.lock.release()
        finally:
            held.users -= 1
            if not held.users:
                self.locks.pop(container_id, None)


class ContainerUse:
    """One use of a container. `take` begins the use, and `put_back`, `delete` or `let_go` ends it."""

    def __init__(self, uses: Uses, holder: str, container_id: str, deadline: float) -> None:
        self._rows = uses.rows
        self._leases = uses.leases
        self._holder = holder
        self._deadline = deadline
        self._holds = False
        self.container_id = container_id

    async def take(self, taking: Callable[[str, float], Awaitable[ContainerRow | None]]) -> ContainerRow | None:
        """Wait for the lease on the container, and renew the lease until the use ends. `taking` requests the lease. Its
        arguments are the holder's name and the lease's duration in seconds. Returns the container's row, or None if
        `taking` returns None because the container does not exist. Raises `InUse` and `StoreError`."""
        clock, pause = asyncio.get_running_loop().time, _FIRST_LOOK
        while True:
            # The holder in another process sends no notice when it releases the lease, so try again after a pause.
            try:
                row = await to_the_end(taking(self._holder, self._leases.seconds))
                break
            except asyncio.CancelledError:
                # `taking` may have got the lease before the cancellation, so `let_go` must release it.
                self._holds = True
                raise
            except ContainerInUse:
                if clock() >= self._deadline:
                    raise InUse from None
            await asyncio.sleep(min(pause, max(0.0, self._deadline - clock())))
            pause = min(2 * pause, _LAST_LOOK)
        if row is not None:
            self._holds = True
            self._leases.hold(self._rows, self._holder)
        return row

    async def put_back(self, row: ContainerRow, came: Sequence[str] = (), went: Sequence[str] = ()) -> None:
        """See `ContainerRows.put_back`. Raises `ContainerFailed` when this use has lost its lease on the container."""
        await self._ended(self._rows.put_back(row, self._holder, came=came, went=went))

    async def delete(self, row: ContainerRow) -> None:
        """See `ContainerRows.delete`. Raises `ContainerFailed` when this use has lost its lease on the container."""
        await self._ended(self._rows.delete(row, self._holder))

    async def let_go(self) -> None:
        """Release the lease if this use holds it or may hold it. If the store fails, the lease stays until it
        expires."""
        if not self._holds:
            return
        self._over()
        try:
            await to_the_end(self._rows.let_go(self.container_id, self._holder))
        except StoreError as error:
            _log.warning("container_not_let_go", container=self.container_id, error=str(error))

    async def _ended(self, work: Awaitable[None]) -> None:
        try:
            await to_the_end(work)
        except ContainerLost:
            _log.warning("container_lost", container=self.container_id)
            self._over()
            raise ContainerFailed(
                "This process was stalled for so long that another process may have used the "
                "container. The result of this call is lost."
            ) from None
        self._over()

    def _over(self) -> None:
        self._holds = False
        self._leases.drop(self._rows, self._holder)


class Snapshots:
    """Saves and restores snapshots. `contents`: the storage of snapshots; None: no snapshots. `machine`: the name of
    this machine. `room`: the size of a container's disk in bytes."""

    def __init__(
        self, sandbox: LocalSandbox, contents: ContainerContents | None = None, machine: str = "", room: int = 0
    ) -> None:
        self._sandbox = sandbox
        self._contents = contents
        self._machine = machine
        self._room = room

    def is_here(self, row: ContainerRow) -> bool:
        """Return whether this machine has the container's current files."""
        return row.machine in ("", self._machine)

    async def bring(self, row: ContainerRow) -> list[str]:
        """Restore the container's files on this machine if another machine has the current files. Returns the paths of
        files that no snapshot contains, which are lost.

        Raises `SandboxFailed` and `StoreError`. After an error the row is unchanged, so the next use tries again.
        """
        if self.is_here(row):
            row.machine = self._machine
            return []
        files = [file for file in row.contents.files if file.blob]
        left_behind = [file.path for file in row.contents.files if not file.blob]
        if left_behind:
            _log.warning("container_files_left_behind", container=row.id, machine=row.machine, files=len(left_behind))
        # Files on this machine are from an earlier use and outdated.
        await self._sandbox.delete(row.id)
        async with AsyncExitStack() as opened:
            readers = {
                blob: await opened.enter_async_context(aclosing(await self._opened(blob)))
                for blob in dict.fromkeys(file.blob for file in files)
            }
            made = await self._sandbox.fill(
                row.id, [(file.path, _read_whole(readers[file.blob], file)) for file in files]
            )
        for file, found in zip(files, made, strict=True):
            file.version = found.version
        row.contents.files = files
        row.machine = self._machine
        return left_behind

    async def read(self, row: ContainerRow, file: RowFile, start: int, limit: int) -> bytes | None:
        """Return at most `limit` bytes of a file from offset `start`, from this machine or from the snapshot. Returns
        None if neither this machine nor the snapshot has the file. Raises `StoreError`."""
        if self.is_here(row):
            try:
                return await self._sandbox.read(row.id, file.path, start, limit)
            except SandboxFailed:
                return None
        if not file.blob:
            return None
        limit = min(limit, max(0, file.size - start))
        async with aclosing(await self._opened(file.blob)) as opened:
            return await opened.read(file.at + start, limit) if limit else b""

    async def keep(self, row: ContainerRow, use: ContainerUse) -> None:
        """Store the row and end the use, after saving a new snapshot if files have changed. If saving the snapshot
        fails, log an error. The changed files are then only on this machine, and the next use tries again to save a
        snapshot. Raises `ContainerFailed` and `StoreError`."""
        async with AsyncExitStack() as opened:
            snapshot = None
            fitting = self._fitting(row)
            if self._contents is not None and not all(file.blob for file in fitting):
                try:
                    writing = await opened.enter_async_context(self._contents.uploading())
                    await self._write(row, writing, fitting)
                    snapshot = writing
                except (StoreError, SandboxFailed) as error:
                    _log.error("container_files_not_copied", container=row.id, files=len(fitting), error=str(error))
            went = _unnamed(row)
            if snapshot is not None:
                # `put_back` may fail with an unknown outcome, so only a sweep may delete this snapshot. A sweep deletes
                # the snapshot after its lease has expired if no row refers to it.
                snapshot.settled = True
            await use.put_back(row, [snapshot.key] if snapshot is not None else [], went)
        await self.forget(went)

    async def forget(self, keys: Iterable[str]) -> None:
        """Delete the snapshots with these keys, to which no row refers any more."""
        for key in keys:
            assert self._contents is not None
            await self._contents.forget(key)

    async def _opened(self, key: str) -> BlobReader:
        if self._contents is None:
            raise StoreError("The container's files are on another machine.")
        return await self._contents.open(key)

    def _fitting(self, row: ContainerRow) -> list[RowFile]:
        """Choose the files for a snapshot within `room` bytes. Files of the previous snapshot have priority."""
        if self._contents is None or not self.is_here(row):
            return []
        left, fitting = self._room, []
        for file in sorted(row.contents.files, key=lambda file: not file.blob):
            if file.size <= left:
                left -= file.size
                fitting.append(file)
        if over := len(row.contents.files) - len(fitting):
            _log.warning("container_files_too_large_to_copy", container=row.id, files=over, limit=self._room)
        return fitting

    async def _write(self, row: ContainerRow, snapshot: SnapshotWriter, files: list[RowFile]) -> None:
        places, size = [], 0
        for file in files:
            places.append(size)
            while (at := size - places[-1]) < file.size:
                piece = await self._sandbox.read(row.id, file.path, at, min(_PIECE, file.size - at))
                if not piece:
                    raise SandboxFailed(f"The file {file.path!r} became shorter while Antiphon copied it.")
                await snapshot.write(piece)
                size += len(piece)
        row.contents.blobs[snapshot.key] = (await snapshot.seal()).size
        for file, at in zip(files, places, strict=True):
            file.blob, file.at = snapshot.key, at


async def _read_whole(reader: BlobReader, file: RowFile) -> AsyncIterator[bytes]:
    at, end = file.at, file.at + file.size
    while at < end:
        piece = await reader.read(at, min(_PIECE, end - at))
        if not piece:
            raise StoreError("A snapshot of a container's files is truncated: it is shorter than its recorded size.")
        at += len(piece)
        yield piece


def _unnamed(row: ContainerRow) -> list[str]:
    """Remove from the row the snapshots that contain no current file, and return the keys of these snapshots."""
    named = {file.blob for file in row.contents.files}
    gone = [key for key in row.contents.blobs if key not in named]
    for key in gone:
        del row.contents.blobs[key]
    return gone
