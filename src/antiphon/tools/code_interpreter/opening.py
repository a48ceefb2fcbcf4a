"""The rooms for code, where they are wanted and this machine can hold code in.

Lives here: trying it out, and putting the parts together; and what an operator does with one owner's containers, while
servers use them or not: counting them, reading what an export holds of them, deleting them. Not here: the parts, the
command line (`commands/admin.py`), the databases (`stores/sqlite/owner_data.py`).

Invariant: a folder without containers gets none by being looked at.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.container_rows import ContainerRow, RowFile, SharedContainers
from antiphon.engine.ports.files import FileStore
from antiphon.local_keys import local_key
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.disk import shown_path
from antiphon.tools.code_interpreter.local import HOLDS, LocalSandbox, try_out
from antiphon.tools.code_interpreter.neighbours import Neighbours
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.snapshots import Snapshots

_log = structlog.get_logger(__name__)

_MACHINE_DIGITS = 16


async def open_rooms(
    chosen: CodeInterpreterSettings, folder: Path, files: FileStore | None, shared: SharedContainers | None = None
) -> ContainerRooms | None:
    """The rooms in this folder; None where the settings want none, or code cannot be held in here, which is logged.
    `shared`: the rows and snapshots that several machines share; without, all of it is in the folder.

    Raises `ConfigError`.
    """
    if chosen.sandbox == "none":
        return None
    # Tried out, not believed: kernels and container runtimes differ.
    trial = await asyncio.to_thread(try_out, chosen.python, folder)
    if trial.reason:
        _log.error("code_interpreter_unavailable", reason=trial.reason)
        return None
    _log.info("code_interpreter_ready", room=trial.room, holds=HOLDS[trial.room])
    sandbox = LocalSandbox(folder / "machines", chosen, trial.room)
    neighbours = Neighbours(sandbox, chosen, chosen.sockets)
    await neighbours.start()
    snapshots = None
    if shared is not None:
        # A machine is named by its folder: one with another disk has no files.
        machine = local_key(folder, "machine").decode()[:_MACHINE_DIGITS]
        snapshots = Snapshots(sandbox, shared.contents, machine, chosen.disk_bytes)
    return ContainerRooms(
        sandbox,
        shared.rows if shared is not None else RecordedRows(Records(folder / "records")),
        files,
        limit=chosen.containers,
        per_owner=chosen.per_owner,
        neighbours=neighbours,
        snapshots=snapshots,
    )


_PART = 1 << 20

Row = tuple[str, str, Any, dict[str, Any]]


class OwnersContainers:
    """The containers below a data folder, or, with `shared`, those of several machines."""

    def __init__(self, data: Path, shared: SharedContainers | None = None) -> None:
        folder, limits = data / "containers", CodeInterpreterSettings()
        self._rows = shared.rows if shared is not None else RecordedRows(Records(folder / "records"))
        self._sandbox = LocalSandbox(folder / "machines", limits)
        self._snapshots = Snapshots(self._sandbox, shared.contents if shared is not None else None)

    async def count(self) -> dict[str, int]:
        """How many each owner has; those that have expired and were not swept yet count."""
        return dict(Counter(head.owner for head in await self._rows.every()))

    async def export(self, owner: str) -> list[Row]:
        """Kind, id, what it belongs to, and the fields of everything. Raises `StoreError`."""
        rows: list[Row] = []
        for row in await self._rows_of(owner):
            fields = {"name": row.name, "last_active_at": row.last_active_at, "runs": row.runs}
            rows.append(("containers", row.id, row.created_at, fields))
            for file in await self._files(row):
                described = {"path": shown_path(file.path), "bytes": file.size, "source": file.source}
                rows.append(("container_files", file.id, row.id, described))
        return rows

    async def contents(self, owner: str) -> AsyncIterator[tuple[str, str, AsyncIterator[bytes]]]:
        """Every file of the owner's containers: its container, its path, its bytes in parts. Of containers that several
        machines share these are as they were after the last use."""
        for row in await self._rows_of(owner):
            for file in await self._files(row):
                if file.blob or self._snapshots.is_here(row):
                    yield row.id, shown_path(file.path), self._read(row, file)

    async def delete(self, owner: str) -> int:
        """Delete the owner's containers with their files; how many. Raises `StoreError`, and `ContainerFailed` for one
        whose code runs on and on."""
        rooms = ContainerRooms(self._sandbox, self._rows, None, snapshots=self._snapshots)
        heads = await self._rows.every(owner)
        try:
            for head in heads:
                await rooms.drop(head.id)
        finally:
            await rooms.aclose()
        return len(heads)

    async def _rows_of(self, owner: str) -> list[ContainerRow]:
        """Those too that have expired."""
        rows = [await self._rows.get(head.id) for head in await self._rows.every(owner)]
        return [row for row in rows if row is not None]

    async def _files(self, row: ContainerRow) -> list[RowFile]:
        """Files as they are, where that is here; one that the row does not know has no id."""
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
