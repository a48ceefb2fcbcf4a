"""Durable state: the stores behind the engine's ports.

Lives here: the choice of a backend by `state.url`. Not here: what a backend is (`backend.py`), the backends, each a
package with all its SQL (`sqlite/`, `postgres/`), the contents of files (`blobs/`), what a row becomes in every backend
(`pages.py`), what steps of a schema are (`schema_steps.py`), an operator's work (`operating.py`, `archives.py`,
`schemas.py`).

Invariant: nothing of a backend is imported before it is chosen.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Unpack

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.extras import extra_missing
from antiphon.stores.backend import StoreOptions, Stores, VectorDatabase
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.blobs.opening import open_blobs
from antiphon.stores.moved_mark import check_not_moved
from antiphon.stores.schemas import check_migrated

__all__ = ["StoreOptions", "Stores", "VectorDatabase", "import_backend", "open_stores"]

_ON_DISK = BlobSettings()


async def open_stores(
    state: StateSettings, data: Path, *, blobs: BlobSettings = _ON_DISK, **options: Unpack[StoreOptions]
) -> Stores:
    """Open the stores, with everything of theirs that is not there yet. `data`: the data folder. `blobs`: where the
    contents of files lie. Raises `ConfigError` and `StoreError`."""
    kind = state.place.kind
    if kind == "sqlite":
        check_not_moved(state.databases(data))
    await check_migrated(state, data)
    if kind == "memory" and blobs.url is None:
        contents: BlobStore = MemoryBlobs()
    else:
        contents = await open_blobs(blobs, data / FILES_FOLDER, of_several=kind == "postgresql")
    try:
        if kind == "postgresql":
            return await _open_postgres(state, contents, options)
        from antiphon.stores.sqlite.opening import open_sqlite
        from antiphon.stores.sqlite.place import Folder, Memory

        where = Memory() if kind == "memory" else Folder(state.databases(data))
        return await open_sqlite(where, blobs=contents, **options)
    except BaseException:
        await contents.aclose()
        raise


def import_backend(kind: str) -> None:
    """Import what `open_stores` will need for this kind of state. Raises ImportError."""
    import_module(f"antiphon.stores.{'postgres' if kind == 'postgresql' else 'sqlite'}.opening")


async def _open_postgres(state: StateSettings, contents: BlobStore, options: StoreOptions) -> Stores:
    try:
        from antiphon.stores.postgres.opening import open_postgres
    except ImportError:
        raise extra_missing("state.url: PostgreSQL", "postgres") from None
    return await open_postgres(state, blobs=contents, **options)
