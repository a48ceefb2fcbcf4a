"""Counts, exports, moves and deletes an owner's containers, for the operator's commands.

This module counts containers, reads their rows and files for an export, gives them to another owner, and deletes them.
`commands/admin/command.py` has the command line, and `stores/sqlite/owner_data.py` handles an owner's other data.

Invariant: counting and exporting create no files in the data folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec.structs import replace

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import ContainerInUse, ContainerLost, ContainerRow, ContainerRows, RowFile
from antiphon.ids import new_id
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.sharing import Snapshots

_PART = 1 << 20
_LEASE_SECONDS = 60.0

Row = tuple[str, str, object, dict[str, object]]


class OwnersContainers:
    """The containers in a data folder. `shared`: the storage for container rows that several machines share, if they
    use a database server."""

    def __init__(self, data: Path, shared: ContainerRows | None = None) -> None:
        folder = data / "containers"
        self._rows = shared if shared is not None else RecordedRows(Records(folder / "records"))
        self._sandbox = LocalSandbox(folder / "machines", CodeInterpreterSettings())
        self._snapshots = Snapshots(self._sandbox, self._rows.contents)

    async def count(self) -> dict[str, int]:
        """Return the number of containers per owner, including expired containers that no sweep has deleted yet."""
        return dict(Counter(head.owner for head in await self._rows.every()))

    async def export(self, owner: str) -> list[Row]:
        """Return one tuple for each container (kind, id, creation time, fields) and one for each file (kind, id, the
        container's id, fields). Raises `StoreError`."""
        rows: list[Row] = []
        for row in await self._rows_of(owner):
            fields = {"name": row.name, "last_active_at": row.last_active_at, "runs": row.runs}
            rows.append(("containers", row.id, row.created_at, fields))
            for file in await self._files(row):
                described = {"path": file.shown_path, "bytes": file.size, "source": file.source}
                rows.append(("container_files", file.id, row.id, described))
        return rows

    async def contents(self, owner: str) -> AsyncIterator[tuple[str, str, AsyncIterator[bytes]]]:
        """Yield each file of the owner's containers: the container's id, the file's path, and an iterator over its
        bytes. If another machine has the current files, the bytes come from the last snapshot."""
        for row in await self._rows_of(owner):
            for file in await self._files(row):
                if file.blob or self._snapshots.is_here(row):
                    yield row.id, file.shown_path, self._read(row, file)

    async def delete(self, owner: str) -> int:
        """Delete the owner's containers with their files. Returns the number of deleted containers. Raises
        `StoreError`, and `ContainerFailed` if a container stays in use."""
        rooms = ContainerRooms(self._sandbox, self._rows, None, snapshots=self._snapshots)
        heads = await self._rows.every(owner)
        try:
            for head in heads:
                await rooms.drop(head.id)
        finally:
            await rooms.aclose()
        return len(heads)

    async def move(self, old: str, new: str) -> list[str]:
        """Give the containers of `old` to `new`, with their files. Returns the ids of the containers that stay with
        `old`, because they are in use. Raises `StoreError`."""
        left = []
        for head in await self._rows.every(old):
            holder = new_id("move")
            try:
                # This call names no owner, so it also gets the lease of an expired container. It does not restart the
                # container's idle time.
                row = await self._rows.take(head.id, holder, _LEASE_SECONDS)
                if row is None:
                    continue
                try:
                    if row.owner == old:
                        await self._rows.give(row, holder, new)
                finally:
                    await self._rows.let_go(head.id, holder)
            except (ContainerInUse, ContainerLost):
                left.append(head.id)
        return left

    async def _rows_of(self, owner: str) -> list[ContainerRow]:
        """Return the owner's container rows, including expired ones."""
        rows = [await self._rows.get(head.id) for head in await self._rows.every(owner)]
        return [row for row in rows if row is not None]

    async def _files(self, row: ContainerRow) -> list[RowFile]:
        """Return a container's files. If this machine has the current files, return the files on disk, with an empty id
        for files that the row does not list."""
        if not self._snapshots.is_here(row):
            return row.contents.files
        known = {file.path: file for file in row.contents.files}
        return [
            replace(known.get(one.path, RowFile("", one.path, 0, "", 0.0, "")), size=one.size)
            for one in await self._sandbox.list(row.id)
        ]

    async def _read(self, row: ContainerRow, file: RowFile) -> AsyncIterator[bytes]:
        at = 0
        while part := await self._snapshots.read(row, file, at, _PART):
            yield part
            at += len(part)
