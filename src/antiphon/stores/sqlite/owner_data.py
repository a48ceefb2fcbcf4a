"""`OwnerData` over the databases of a folder.

Lives here: which of them is asked. Not here: their SQL (`admin.py`, `vector_admin.py`).

Invariant: nothing is made by being looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from antiphon.engine.ports.owner_data import ExportedRow, OwnerCounts, Shrunk
from antiphon.stores.bodies import Bodies
from antiphon.stores.owner_data import exported
from antiphon.stores.sqlite.admin import delete_owner, export_owner, list_owners, vacuum
from antiphon.stores.sqlite.opening import SESSIONS_FILE
from antiphon.stores.sqlite.vector_admin import count_stores, delete_stores, export_stores
from antiphon.stores.sqlite.vector_database import VECTORS_FILE


class SqliteOwnerData:
    """`OwnerData` of the databases in this folder."""

    def __init__(self, folder: Path, bodies: Bodies) -> None:
        """`bodies` opens what is sealed."""
        self._bodies = bodies
        self._folder = folder
        self._path = folder / SESSIONS_FILE

    async def owners(self) -> list[OwnerCounts]:
        """Every owner of anything."""
        stores = await count_stores(self._folder)
        found = {one.owner: one for one in list_owners(self._path)}
        return [
            replace(found.get(owner, OwnerCounts(owner)), vector_stores=stores.get(owner, 0))
            for owner in sorted({*found, *stores})
        ]

    async def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Everything of an owner but files."""
        for kind, fields in export_owner(self._path, owner):
            yield exported(kind, fields, self._bodies)
        for row in await export_stores(self._folder, owner):
            yield ExportedRow(*row)

    async def delete(self, owner: str) -> int:
        """Everything of an owner but files: vector stores first, which refer to the rest."""
        return await delete_stores(self._folder, owner) + delete_owner(self._path, owner)

    async def vacuum(self) -> list[Shrunk]:
        """Give unused space back; there must be room for a database twice."""
        paths = [path for path in (self._path, self._folder / VECTORS_FILE) if path.exists()]
        return [Shrunk(str(path), *vacuum(path)) for path in paths]

    async def aclose(self) -> None:
        """Nothing stays open."""
