"""Stores Antiphon's durable state (responses, conversations, files, jobs, vector stores) in SQLite or PostgreSQL.

Lives here: the function that opens the stores. The setting `state.url` selects the backend. This module also checks the
database before a process starts, and yields what `antiphon doctor` reports about the schema and the keys (its
"findings"). Not here: the selection of a backend (`choice.py`), the interface of a backend (`backend.py`), the backends
(`sqlite/`, `postgres/`). Not here: file contents (`blobs/`), and the rules for schemas and keys (`compatibility.py`).

Invariants: a process imports the modules of a backend only when `state.url` selects that backend. The functions that
yield findings for `antiphon doctor` read the database and never write to it. No finding of `antiphon doctor` contains a
password.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Unpack

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.errors import AntiphonError, StoreError
from antiphon.stores.backend import StateFinding, StateNeeds, StoreOptions, Stores, VectorDatabase
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import KeyFingerprints, keys_to_record, missing_steps, oldest_schema

__all__ = [
    "StoreOptions",
    "Stores",
    "VectorDatabase",
    "backend_of",
    "check_deployment",
    "check_migrated",
    "examine_state",
    "open_stores",
]

_ON_DISK = BlobSettings()


async def open_stores(
    state: StateSettings, data: Path, *, blobs: BlobSettings = _ON_DISK, **options: Unpack[StoreOptions]
) -> Stores:
    """Open the stores. The backend creates a missing folder, database or table.

    `data`: the data folder. `blobs`: the settings of the storage for file contents. Raises `ConfigError` and
    `StoreError`."""
    backend = backend_of(state, data)
    backend.check_not_moved()
    await check_migrated(state, data)
    contents = await backend.open_contents(blobs)
    try:
        return await backend.open(contents, options)
    except BaseException:
        await contents.aclose()
        raise


async def check_deployment(state: StateSettings, data: Path, keys: KeyFingerprints) -> None:
    """Check that this process's owner key and sealing keys match the key fingerprints that the database records. Raises
    `ConfigError` when the keys differ, and `StoreError` when the database fails."""
    await backend_of(state, data).check_keys(keys)


async def check_migrated(state: StateSettings, data: Path) -> None:
    """Raise `StoreError` when `state.migrate` is `check` and a database lacks a migration that this build contains."""
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


async def examine_state(state: StateSettings, data: Path, wanted: StateNeeds) -> AsyncIterator[StateFinding]:
    """Yield the findings of `antiphon doctor` about the database, each as soon as it is known. An `AntiphonError`
    becomes a finding with the verdict `problem`."""
    try:
        async for said in backend_of(state, data).examine(wanted, _schema_and_keys(state, data, wanted.keys)):
            yield said
    except AntiphonError as error:
        yield StateFinding("problem", str(error))


async def _schema_and_keys(state: StateSettings, data: Path, keys: KeyFingerprints) -> AsyncIterator[StateFinding]:
    async with backend_of(state, data).open_schemas(seconds=state.deadline) as schemas:
        for schema in schemas:
            applied = await schema.applied()
            missing = missing_steps(applied, schema.steps)
            if not missing:
                newer = len(applied) - len(schema.steps)
                more = f", and {newer} steps of a newer version" if newer else ""
                serves = f"versions of Antiphon with schema {oldest_schema(applied)} or newer can use this database"
                yield StateFinding("ok", f"{schema.name}: schema {len(schema.steps)}{more}; {serves}")
            elif state.migrate == "check":
                yield StateFinding(
                    "problem",
                    f"{schema.name} lacks {len(missing)} schema steps",
                    "run 'antiphon migrate up', then start",
                )
            elif applied:
                yield StateFinding(
                    "note",
                    f"{schema.name} lacks {len(missing)} schema steps",
                    "the next start of Antiphon applies the missing steps",
                )
            else:
                yield StateFinding("ok", f"{schema.name} is new: the first start creates its schema")
    try:
        recorded = await backend_of(state, data).recorded_keys()
    except AntiphonError:
        # Before the first start the table of recorded keys does not exist.
        return
    if recorded is None:
        return
    if not recorded:
        yield StateFinding("ok", "no process has started on this database yet: the first start records its keys")
        return
    keys_to_record(recorded, keys)
    yield StateFinding("ok", "owner.key and sealing.keys are the same as on the other machines")
