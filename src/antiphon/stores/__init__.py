"""Stores Antiphon's durable state (responses, conversations, files, jobs, vector stores) in SQLite or PostgreSQL.

Lives here: the function that opens the stores of the backend that `state.url` selects, and the checks before a start.
Not here: the selection of a backend (`choice.py`), its interface (`backend.py`), the backends (`sqlite/`, `postgres/`),
file contents (`blobs/`), pages (`pages.py`), schema steps (`schema_steps.py`).

Invariant: the process imports a backend's modules only when `state.url` selects that backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.errors import StoreError
from antiphon.stores.backend import StoreOptions, Stores, VectorDatabase
from antiphon.stores.choice import backend_of
from antiphon.stores.deployment import Keys
from antiphon.stores.schema_steps import missing_steps

__all__ = [
    "StoreOptions",
    "Stores",
    "VectorDatabase",
    "backend_of",
    "check_deployment",
    "check_migrated",
    "open_stores",
]

_ON_DISK = BlobSettings()


async def open_stores(
    state: StateSettings, data: Path, *, blobs: BlobSettings = _ON_DISK, **options: Unpack[StoreOptions]
) -> Stores:
    """Open the stores. The backend creates a missing folder, database or table.

    `data`: the data folder. `blobs`: the storage for the contents of files. Raises `ConfigError` and `StoreError`."""
    backend = backend_of(state, data)
    backend.check_not_moved()
    await check_migrated(state, data)
    contents = await backend.open_contents(blobs)
    try:
        return await backend.open(contents, options)
    except BaseException:
        await contents.aclose()
        raise


async def check_deployment(state: StateSettings, data: Path, keys: Keys) -> None:
    """Check that this process's owner key and sealing keys match the fingerprints of keys in the database. Raises
    `ConfigError` when the keys differ, and `StoreError` when the database fails."""
    await backend_of(state, data).check_keys(keys)


async def check_migrated(state: StateSettings, data: Path) -> None:
    """Raise `StoreError` when `state.migrate` is `check` and a database lacks a schema step of this build."""
    if state.migrate == "auto" or state.place.kind == "memory":
        return
    async with backend_of(state, data).open_schemas(seconds=state.deadline, within=state.start_within) as schemas:
        for schema in schemas:
            missing = missing_steps(await schema.applied(), schema.steps)
            if missing:
                raise StoreError(
                    f"{schema.name} lacks {len(missing)} schema steps, from {missing[0].name} on, and state.migrate is "
                    "'check': run `antiphon migrate up` once, then start again."
                )
