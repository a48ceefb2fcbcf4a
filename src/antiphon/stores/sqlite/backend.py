"""SQLite as a backend: databases in a folder of this machine, or in memory.

Lives here: what of this package does what `Backend` offers. Not here: any of it.

Invariant: what only operators need is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.errors import ConfigError
from antiphon.stores.backend import Archived, Backend, KeyFiles, Said, StoreOptions, Stores, Wanted
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.bodies import Bodies
from antiphon.stores.moved_mark import check_not_moved
from antiphon.stores.schema_steps import Schema
from antiphon.stores.sqlite.opening import SESSIONS_FILE, open_sqlite


class SqliteBackend(Backend):
    """Databases in the data folder, or in another one."""

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
        from antiphon.stores.sqlite.schema import sqlite_schemas

        return nullcontext(sqlite_schemas(self._folder))

    async def examine(self, wanted: Wanted, shared: AsyncIterator[Said]) -> AsyncIterator[Said]:
        """See `Backend`."""
        from antiphon.stores.sqlite.schema import examine_schemas

        self.check_not_moved()
        async for said in shared:
            yield said
        async for said in examine_schemas(self._folder):
            yield said

    def make_archive(self, target: Path, keys: KeyFiles, *, with_keys: bool, with_contents: bool) -> Archived:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import make_archive

        return make_archive(
            self.data, target, keys, with_keys=with_keys, with_contents=with_contents, databases=self._folder
        )

    def open_archive(self, source: Path, keys: KeyFiles) -> Archived:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import open_archive

        if self._folder != self.data:
            raise ConfigError(
                "state.url: an archive is restored into one folder; leave 'state.url' out, and move the databases "
                "after it"
            )
        return open_archive(source, self.data, keys)


class MemoryBackend(Backend):
    """The same in memory, with the contents of files: it is gone with the process."""

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

    async def examine(self, wanted: Wanted, shared: AsyncIterator[Said]) -> AsyncIterator[Said]:
        """See `Backend`."""
        yield Said("note", "everything is in memory", "nothing outlives the process; name a database in state.url")


def _of_one_process() -> ConfigError:
    return ConfigError("state.url: memory: is the state of one process, which nobody else can look at")
