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
from antiphon.engine.running.thread_pools import RECORDS
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.port import shown_path
from antiphon.tools.code_interpreter.records import Head, Records

_PART = 1 << 20

Row = tuple[str, str, Any, dict[str, Any]]


class OwnersContainers:
    """The containers below a data folder."""

    def __init__(self, data: Path) -> None:
        self._records = Records(data / "containers" / "records")
        self._sandbox = LocalSandbox(data / "containers" / "machines", CodeInterpreterSettings())

    def count(self) -> dict[str, int]:
        """How many each owner has; those that have expired and were not swept yet count."""
        return dict(Counter(head.owner for head in self._records.every()))

    async def export(self, owner: str) -> list[Row]:
        """Kind, id, what it belongs to, and the fields of everything. Raises `StoreError`."""
        rows: list[Row] = []
        for head in await self._of(owner):
            fields = {"name": head.name, "last_active_at": head.last_active_at, "runs": head.runs}
            rows.append(("containers", head.id, head.created_at, fields))
            known = {file.path: file for file in await RECORDS.run(self._files, head.id)}
            for file in await self._sandbox.list(head.id):
                named = known.get(file.path)
                rows.append(
                    (
                        "container_files",
                        named.id if named is not None else "",
                        head.id,
                        {
                            "path": shown_path(file.path),
                            "bytes": file.size,
                            "source": named.source if named is not None else "",
                        },
                    )
                )
        return rows

    async def contents(self, owner: str) -> AsyncIterator[tuple[str, str, AsyncIterator[bytes]]]:
        """Every file of the owner's containers: its container, its path, its bytes in parts."""
        for head in await self._of(owner):
            for file in await self._sandbox.list(head.id):
                yield head.id, shown_path(file.path), self._read(head.id, file.path)

    async def delete(self, owner: str) -> int:
        """Delete the owner's containers with their files; how many. Raises `StoreError`, and `ContainerFailed` for one
        whose code runs on and on."""
        rooms = ContainerRooms(self._sandbox, self._records, None)
        heads = await self._of(owner)
        for head in heads:
            await rooms.drop(head.id)
        return len(heads)

    async def _of(self, owner: str) -> list[Head]:
        return [head for head in await RECORDS.run(self._records.every) if head.owner == owner]

    def _files(self, container_id: str) -> list[Any]:
        record = self._records.get(container_id)
        return record.contents.files if record is not None else []

    async def _read(self, container_id: str, path: str) -> AsyncIterator[bytes]:
        at = 0
        while part := await self._sandbox.read(container_id, path, at, _PART):
            yield part
            at += len(part)
