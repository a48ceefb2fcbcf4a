"""Durable state: the stores, over SQLite or PostgreSQL.

Lives here: opening the stores of whichever backend `state.url` chooses (`choice.py`), once nothing speaks against it.
Not here: what a backend is (`backend.py`), the backends, the contents of files (`blobs/`), what a row becomes in every
backend (`pages.py`), what steps of a schema are (`schema_steps.py`).

Invariant: nothing of a backend is imported before it is chosen.
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
    """Open the stores, with everything of theirs that is not there yet. `data`: the data folder. `blobs`: where the
    contents of files lie. Raises `ConfigError` and `StoreError`."""
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
    """Refuse a start with keys that do not go with the database. Raises `ConfigError` and `StoreError`."""
    await backend_of(state, data).check_keys(keys)


async def check_migrated(state: StateSettings, data: Path) -> None:
    """Raises `StoreError` when `state.migrate` is `check` and a database lacks a step of this build."""
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
