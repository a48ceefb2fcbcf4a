"""What an operator does with one owner's containers, while servers use them or not.

Lives here: counting them, reading what an export holds of them, deleting them. Not here: the command line
(`commands/admin.py`), the databases (`stores/sqlite/admin.py`).

Invariant: a folder without containers gets none by being looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.container_rows import ContainerRow, RowFile, SharedContainers
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.mirror import Mirror
from antiphon.tools.code_interpreter.port import shown_path
from antiphon.tools.code_interpreter.recorded_rows import RecordedRows
from antiphon.tools.code_interpreter.records import Records

_PART = 1 << 20

Row = tuple[str, str, Any, dict[str, Any]]


class OwnersContainers:
    """The containers below a data folder, or, with `shared`, those of several machines."""

    def __init__(self, data: Path, shared: SharedContainers | None = None) -> None:
        folder, limits = data / "containers", CodeInterpreterSettings()
        self._rows = shared.rows if shared is not None else RecordedRows(Records(folder / "records"))
        self._sandbox = LocalSandbox(folder / "machines", limits)
        self._mirror = Mirror(self._sandbox, shared.contents, "", limits.disk_bytes) if shared is not None else None

    async def count(self) -> dict[str, int]:
        """How many each owner has; those that have expired and were not swept yet count."""
        return dict(Counter(head.owner for head in await self._rows.every()))

    async def export(self, owner: str) -> list[Row]:
        """Kind, id, what it belongs to, and the fields of everything. Raises `StoreError`."""
        rows: list[Row] = []
        for row in await self._rows.all_of(owner):
            fields = {"name": row.name, "last_active_at": row.last_active_at, "runs": row.runs}
            rows.append(("containers", row.id, row.created_at, fields))
            for path, size, named in await self._files(row):
                described = {"path": shown_path(path), "bytes": size, "source": named.source if named else ""}
                rows.append(("container_files", named.id if named else "", row.id, described))
        return rows

    async def contents(self, owner: str) -> AsyncIterator[tuple[str, str, AsyncIterator[bytes]]]:
        """Every file of the owner's containers: its container, its path, its bytes in parts. Of containers that several
        machines share these are the copies, as they were after the last use."""
        for row in await self._rows.all_of(owner):
            for path, _, named in await self._files(row):
                if self._mirror is None or (named is not None and named.blob):
                    yield row.id, shown_path(path), self._read(row.id, path, named)

    async def delete(self, owner: str) -> int:
        """Delete the owner's containers with their files; how many. Raises `StoreError`, and `ContainerFailed` for one
        whose code runs on and on."""
        rooms = ContainerRooms(self._sandbox, self._rows, None, mirror=self._mirror)
        heads = [head for head in await self._rows.every() if head.owner == owner]
        try:
            for head in heads:
                await rooms.drop(head.id)
        finally:
            await rooms.aclose()
        return len(heads)

    async def _files(self, row: ContainerRow) -> list[tuple[str, int, RowFile | None]]:
        """Path, size and what the row says of each file."""
        known = {file.path: file for file in row.contents.files}
        if self._mirror is not None:
            return [(file.path, file.size, file) for file in known.values()]
        return [(file.path, file.size, known.get(file.path)) for file in await self._sandbox.list(row.id)]

    async def _read(self, container_id: str, path: str, named: RowFile | None) -> AsyncIterator[bytes]:
        at = 0
        while part := await self._part(container_id, path, named, at):
            yield part
            at += len(part)

    async def _part(self, container_id: str, path: str, named: RowFile | None, at: int) -> bytes | None:
        if self._mirror is not None and named is not None:
            return await self._mirror.read(named, at, _PART)
        return await self._sandbox.read(container_id, path, at, _PART)
