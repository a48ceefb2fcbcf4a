"""Saves and restores snapshots of a container's files, for containers that several machines share. A machine saves a
snapshot after a use and restores it before a use on another machine.

Lives here: the format of a snapshot, the decision to save a new one, and the check whether this machine has the current
files. Not here: the storage of snapshots (`stores/blobs/pending.py`), files on disk (`local.py`), the lease on the
container (`uses.py`).

A snapshot is one blob that contains all files of a container, one after the other. The container's row has the offset
of each file. A use that creates or changes a file saves a new snapshot, which replaces the previous one. If only one
machine uses the state, Antiphon saves no snapshots.

Snapshots contain only files. Empty folders, variables and open files are lost when a container changes machines.

Invariants: code runs only after the machine's files match the row. A row refers only to durable snapshots. A snapshot
is at most as large as a container's disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing

import structlog

from antiphon.engine.ports.containers import ContainerContents, ContainerRow, RowFile, SnapshotWriter
from antiphon.engine.ports.files import BlobReader
from antiphon.errors import StoreError
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.uses import ContainerUse

_log = structlog.get_logger(__name__)

_PIECE = 1 << 20


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
        """Restore the container's files on this machine if another machine has the current ones. Returns the paths of
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
        fails, log an error. The changed files are then only on this machine, and the next use tries again. Raises
        `ContainerFailed` and `StoreError`."""
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
        """Delete the snapshots of these keys, to which no row refers any more."""
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
    """Remove the snapshots that contain no current file from the row, and return their keys."""
    named = {file.blob for file in row.contents.files}
    gone = [key for key in row.contents.blobs if key not in named]
    for key in gone:
        del row.contents.blobs[key]
    return gone
