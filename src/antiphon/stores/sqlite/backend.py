"""Implements `Backend` for SQLite: databases in a local folder, or in memory.

Lives here: the `Backend` classes that call the other modules of this package, and the `Schema` of each database file.
Not here: opening the stores (`opening.py`), the `Schema` interface (`stores/compatibility.py`), running migration steps
(`migrate.py`).

Invariant: a module that only an operator's command needs (backup, owner data) is imported on its first use, so a server
never loads it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.state import OwnerData
from antiphon.errors import ConfigError
from antiphon.stores.backend import (
    Archived,
    Backend,
    KeyFiles,
    Report,
    StateFinding,
    StateNeeds,
    StoreOptions,
    Stores,
    unreported,
)
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import Applied, Schema, SchemaStep
from antiphon.stores.moved import check_not_moved
from antiphon.stores.sqlite.database import create_file, opened
from antiphon.stores.sqlite.migrate import applied_steps, lacking, migrate, packaged_steps, undo
from antiphon.stores.sqlite.opening import SESSIONS_FILE, VECTOR_STEPS, VECTORS_FILE, open_sqlite

T = TypeVar("T")


class SqliteBackend(Backend):
    """The backend that stores SQLite databases in the data folder, or in the folder that `state.url` names."""

    @property
    def _folder(self) -> Path:
        return self.state.databases(self.data)

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_sqlite(self._folder, blobs=contents, **options)

    def check_not_moved(self) -> None:
        """See `Backend`."""
        check_not_moved(self._folder)

    def check_there(self) -> None:
        """See `Backend`."""
        folder = self._folder
        if not (folder / SESSIONS_FILE).exists():
            raise ConfigError(f"data: there is no database in {folder}; name the folder with --data or --config")

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        from antiphon.stores.sqlite.owner_data import SqliteOwnerData

        self.check_there()
        return SqliteOwnerData(self._folder, bodies)

    def has_rows(self, *, hashed: bool) -> bool:
        """See `Backend`."""
        from antiphon.stores.sqlite.owner_data import has_rows

        return has_rows(self._folder, hashed=hashed)

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        return nullcontext(sqlite_schemas(self._folder))

    async def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """See `Backend`."""
        self.check_not_moved()
        async for said in shared:
            yield said
        async for said in examine_schemas(self._folder):
            yield said

    def make_archive(
        self, target: Path, keys: KeyFiles, *, with_keys: bool, with_contents: bool, report: Report = unreported
    ) -> Archived:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import make_archive

        return make_archive(
            self.data,
            target,
            keys,
            with_keys=with_keys,
            with_contents=with_contents,
            databases=self._folder,
            report=report,
        )

    def open_archive(self, source: Path, keys: KeyFiles, *, report: Report = unreported) -> Archived:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import open_archive

        if self._folder != self.data:
            raise ConfigError(
                "state.url: an archive is restored into one folder; leave 'state.url' out, and move the databases "
                "after it"
            )
        return open_archive(source, self.data, keys, report=report)


class MemoryBackend(Backend):
    """The backend that stores SQLite databases in memory, and file contents too unless `blobs.url` is set. All data is
    lost when the process ends."""

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_sqlite(None, blobs=contents, **options)

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """See `Backend`."""
        return MemoryBlobs() if blobs.url is None else await super().open_contents(blobs)

    def check_there(self) -> None:
        """See `Backend`."""
        raise _of_one_process()

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        raise _of_one_process()

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        raise ConfigError("state.url: memory: has no schema; name a database in state.url")

    async def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """See `Backend`."""
        yield StateFinding(
            "note",
            "everything is in memory",
            ("a stop of the process deletes it; name a database in state.url to store it"),
        )


def _of_one_process() -> ConfigError:
    return ConfigError("state.url: memory: only the running process can see this state. Name a database in state.url")


@dataclass(frozen=True, slots=True)
class SqliteSchema(Schema):
    """The `Schema` of one database file."""

    path: Path

    async def applied(self) -> Sequence[Applied]:
        """See `Schema`."""
        if not self.path.exists():
            return []
        return await asyncio.to_thread(self._on, applied_steps, writes=False)

    async def up(self) -> Sequence[SchemaStep]:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: migrate(connection, self.steps))

    async def undo(self) -> SchemaStep:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: undo(connection, self.steps))

    async def lacking(self) -> tuple[int, dict[str, str]]:
        """Return the number of expected tables and indexes, and the missing ones (see `lacking` in `migrate.py`).
        Returns `(0, {})` when the database file does not exist. Raises `StoreError`."""
        if not self.path.exists():
            return 0, {}
        return await asyncio.to_thread(self._on, lambda connection: lacking(connection, self.steps), writes=False)

    def _on(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        with opened(self.path, "Changing the schema" if writes else "Reading the schema", writes=writes) as connection:
            return work(connection)


def sqlite_schemas(folder: Path) -> tuple[SqliteSchema, ...]:
    """Return the schemas of `sessions.db` and `vectors.db` in this folder, even when the files do not exist."""
    package = Path(str(files("antiphon.stores.sqlite")))
    return (
        SqliteSchema(SESSIONS_FILE, packaged_steps(), package / "migrations", folder / SESSIONS_FILE),
        SqliteSchema(VECTORS_FILE, packaged_steps(VECTOR_STEPS), package / VECTOR_STEPS, folder / VECTORS_FILE),
    )


async def examine_schemas(folder: Path) -> AsyncIterator[StateFinding]:
    """Yield a finding for each missing table and index. A missing index makes queries slow. A missing table makes
    requests fail."""
    for schema in sqlite_schemas(folder):
        number, gone = await schema.lacking()
        for name, sql in gone.items():
            if name.startswith("table"):
                yield StateFinding(
                    "problem", f"{schema.name} lacks the {name}", "restore a backup (antiphon admin restore)"
                )
            else:
                made = f"create it again with sqlite3: {' '.join(sql.split())}" if sql else "restore a backup"
                yield StateFinding("note", f"{schema.name}: the {name} is missing: its queries are slow", made)
        if number and not gone:
            yield StateFinding("ok", f"{schema.name}: all {number} tables and indexes of the schema are there")
