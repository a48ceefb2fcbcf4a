"""Files of containers that several machines share: copies when something is over, and back where it goes on.

Lives here: what is copied, how much, and whether a machine's files are those of the row. Not here: where copies lie
(`ContainerContents`), files (`port.py`), who holds the container meanwhile (`uses.py`).

What changed since the last copy is one content, file behind file, so that a run with a thousand files is one upload. A
content goes when no file is left in it. When all of them together would be more than twice what a container's files
may take, everything is copied anew into one.

Between machines nothing else is carried: folders without files, variables and what was open are lost.

Invariants: the files of a machine are used only once they are those of the row; a row names only copies that are
durable; copies never take more than twice a container's disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack

import structlog

from antiphon.engine.ports.container_rows import ContainerContents, ContainerRow, CopyWriter, RowFile
from antiphon.engine.ports.containers import ContainerFailed
from antiphon.errors import StoreError
from antiphon.tools.code_interpreter.port import Sandbox, SandboxFailed
from antiphon.tools.code_interpreter.uses import Use

_log = structlog.get_logger(__name__)

_PIECE = 1 << 20
_MACHINES = 8
"""So many machines are remembered as having a file already."""


class Mirror:
    """See the module. `machine` is this one's name, `room` the bytes of a container's disk."""

    def __init__(self, sandbox: Sandbox, contents: ContainerContents, machine: str, room: int) -> None:
        self._sandbox = sandbox
        self._contents = contents
        self._room = room
        self.machine = machine

    def is_here(self, row: ContainerRow) -> bool:
        """Whether the files of this machine are the row's."""
        return row.machine in ("", self.machine)

    async def bring(self, row: ContainerRow) -> list[str]:
        """Make the files of this machine those of the row. Files without a copy are gone from then on; their paths.

        Raises `SandboxFailed`, `StoreError`: then the row is as it was, and the next one tries again.
        """
        if self.is_here(row):
            row.machine = self.machine
            return []
        files = [file for file in row.contents.files if file.blob]
        left_behind = [file.path for file in row.contents.files if not file.blob]
        if left_behind:
            _log.warning("container_files_left_behind", container=row.id, machine=row.machine, files=len(left_behind))
        try:
            versions = await self._fill(row.id, files)
        except SandboxFailed:
            # A folder stands where a file must be, for example. Files alone are kept: everything can be brought anew.
            await self._sandbox.delete(row.id)
            versions = await self._fill(row.id, files)
        for file, version in zip(files, versions, strict=True):
            others = {**file.elsewhere, row.machine: file.version}
            others.pop(self.machine, None)
            file.elsewhere = dict(list(others.items())[-_MACHINES:])
            file.version = version
        row.contents.files = files
        row.machine = self.machine
        return left_behind

    async def read(self, file: RowFile, start: int, limit: int) -> bytes | None:
        """Bytes of a file's copy; None when it has none. Raises `StoreError`."""
        if not file.blob:
            return None
        limit = min(limit, max(0, file.size - start))
        if not limit:
            return b""
        opened = await self._contents.open(file.blob)
        try:
            return await opened.read(file.at + start, limit)
        finally:
            await opened.aclose()

    async def keep(self, row: ContainerRow, use: Use) -> None:
        """Copy what has changed, and put the row back, which names the copies. What cannot be copied stays on this
        machine alone, which the log says; the next use tries again. Raises `ContainerFailed`, `StoreError`."""
        async with AsyncExitStack() as opened:
            copy = None
            if changed := self._chosen(row):
                try:
                    writing = await opened.enter_async_context(self._contents.uploading())
                    await self._write(row, writing, changed)
                    copy = writing
                except (StoreError, SandboxFailed) as error:
                    _log.error("container_files_not_copied", container=row.id, files=len(changed), error=str(error))
            went = _unnamed(row)
            await _put_back(row, use, copy, went)
        await self.forget(went)

    async def forget(self, keys: Iterable[str]) -> None:
        """Delete contents that no row names any more."""
        for key in keys:
            await self._contents.forget(key)

    def _chosen(self, row: ContainerRow) -> list[RowFile]:
        """The files to copy: those that have no copy, as many as there is room for, or all."""
        left, fitting = self._room, []
        # Those that have a copy first: they have their room.
        for file in sorted(row.contents.files, key=lambda file: not file.blob):
            if file.size <= left:
                left -= file.size
                fitting.append(file)
        if over := len(row.contents.files) - len(fitting):
            _log.warning("container_files_too_large_to_copy", container=row.id, files=over, limit=self._room)
        changed = [file for file in fitting if not file.blob]
        kept = {file.blob for file in row.contents.files if file.blob}
        if changed and sum(row.contents.blobs[key] for key in kept) + self._room - left > 2 * self._room:
            return fitting
        return changed

    async def _write(self, row: ContainerRow, copy: CopyWriter, files: list[RowFile]) -> None:
        places, size = [], 0
        for file in files:
            places.append(size)
            async for piece in self._pieces(row.id, file):
                await copy.write(piece)
            size += file.size
        row.contents.blobs[copy.key] = (await copy.seal()).size
        for file, at in zip(files, places, strict=True):
            file.blob, file.at = copy.key, at

    async def _pieces(self, key: str, file: RowFile) -> AsyncIterator[bytes]:
        at = 0
        while at < file.size:
            piece = await self._sandbox.read(key, file.path, at, min(_PIECE, file.size - at))
            if not piece:
                raise SandboxFailed(f"The file {file.path!r} is shorter than it was.")
            at += len(piece)
            yield piece

    async def _fill(self, key: str, files: list[RowFile]) -> list[str]:
        """Bring what differs, and take away what is no file of the row's; the versions of the files."""
        here = {file.path: file for file in await self._sandbox.list(key)}
        for path in here.keys() - {file.path for file in files}:
            await self._sandbox.remove(key, path)
        versions = {
            file.path: found.version
            for file in files
            if (found := here.get(file.path)) is not None and file.elsewhere.get(self.machine) == found.version
        }
        lacking = [file for file in files if file.path not in versions]
        made = await self._sandbox.fill(key, [(file.path, self._copied(file)) for file in lacking])
        versions |= {file.path: file.version for file in made}
        return [versions[file.path] for file in files]

    async def _copied(self, file: RowFile) -> AsyncIterator[bytes]:
        opened = await self._contents.open(file.blob)
        try:
            at = 0
            while at < file.size:
                piece = await opened.read(file.at + at, min(_PIECE, file.size - at))
                if not piece:
                    raise StoreError("A copy of a container's file is shorter than it was.")
                at += len(piece)
                yield piece
        finally:
            await opened.aclose()


async def _put_back(row: ContainerRow, use: Use, copy: CopyWriter | None, went: list[str]) -> None:
    if copy is None:
        await use.put_back(row, went=went)
        return
    # Where nobody knows whether the row was kept, the rows decide what becomes of it.
    copy.settled = True
    try:
        await use.put_back(row, (copy.key,), went)
    except ContainerFailed:
        copy.settled = False
        raise


def _unnamed(row: ContainerRow) -> list[str]:
    """Contents in which no file of the row is left, which it names no longer."""
    named = {file.blob for file in row.contents.files}
    gone = [key for key in row.contents.blobs if key not in named]
    for key in gone:
        del row.contents.blobs[key]
    return gone
