"""The schemas of a data folder, for an operator.

Lives here: looking at and changing the schema of each database file. Not here: what is asked of them
(`stores/schema_steps.py`), applying steps (`migrate.py`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from antiphon.stores.backend import Said
from antiphon.stores.schema_steps import Applied, Schema, Step
from antiphon.stores.sqlite.database import connect_writer, create_file, reader_uri, store_errors
from antiphon.stores.sqlite.migrate import applied_steps, lacking, migrate, packaged_steps, undo
from antiphon.stores.sqlite.opening import SESSIONS_FILE
from antiphon.stores.sqlite.vector_database import VECTOR_STEPS, VECTORS_FILE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SqliteSchema(Schema):
    """`Schema` of one file."""

    path: Path

    async def applied(self) -> Sequence[Applied]:
        """See `Schema`."""
        if not self.path.exists():
            return []
        return await asyncio.to_thread(self._on, applied_steps, writes=False)

    async def up(self) -> Sequence[Step]:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: migrate(connection, self.steps))

    async def undo(self) -> Step:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: undo(connection, self.steps))

    async def lacking(self) -> tuple[int, dict[str, str]]:
        """See `migrate.py`; nothing of a database that is not there. Raises `StoreError`."""
        if not self.path.exists():
            return 0, {}
        return await asyncio.to_thread(self._on, lambda connection: lacking(connection, self.steps), writes=False)

    def _on(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        with store_errors("Changing the schema" if writes else "Reading the schema", self.path):
            opened = connect_writer(self.path) if writes else sqlite3.connect(reader_uri(self.path), uri=True)
            with closing(opened) as connection:
                return work(connection)


def sqlite_schemas(folder: Path) -> tuple[SqliteSchema, ...]:
    """Those of the databases in this folder, whether they are there or not."""
    package = Path(str(files("antiphon.stores.sqlite")))
    return (
        SqliteSchema(SESSIONS_FILE, packaged_steps(), package / "migrations", folder / SESSIONS_FILE),
        SqliteSchema(VECTORS_FILE, packaged_steps(VECTOR_STEPS), package / VECTOR_STEPS, folder / VECTORS_FILE),
    )


async def examine_schemas(folder: Path) -> AsyncIterator[Said]:
    """Tables and indexes that a database file lacks: without an index queries are slow, without a table requests
    fail."""
    for schema in sqlite_schemas(folder):
        number, gone = await schema.lacking()
        for name, sql in gone.items():
            if name.startswith("table"):
                yield Said("problem", f"{schema.name} lacks the {name}", "restore a backup (antiphon admin restore)")
            else:
                made = f"create it again with sqlite3: {' '.join(sql.split())}" if sql else "restore a backup"
                yield Said("note", f"{schema.name}: the {name} is missing: its queries are slow", made)
        if number and not gone:
            yield Said("ok", f"{schema.name}: all {number} tables and indexes of the schema are there")
