"""Selects the database backend (SQLite or PostgreSQL) by the scheme of `state.url`. Lives here: the list of backends.
Not here: the interface of a backend (`backend.py`). Each backend is a package that contains all of its SQL (`sqlite/`,
`postgres/`).

Invariant: outside a backend's package, only this file imports the backend, and only when `state.url` selects it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from antiphon.config.problems import extra_missing
from antiphon.config.state import StateSettings
from antiphon.stores.backend import Backend

if TYPE_CHECKING:
    from antiphon.stores.postgres.importing import DatabaseImport as DatabaseImport
    from antiphon.stores.sqlite.exporting import FolderExport as FolderExport


def backend_of(state: StateSettings, data: Path) -> Backend:
    """Return the backend that `state.url` selects. `data`: the data folder. Raises `ConfigError` when the backend's
    driver is not installed."""
    try:
        match state.place.kind:
            case "sqlite":
                from antiphon.stores.sqlite.backend import SqliteBackend

                return SqliteBackend(state, data)
            case "memory":
                from antiphon.stores.sqlite.backend import MemoryBackend

                return MemoryBackend(state, data)
            case "postgresql":
                from antiphon.stores.postgres.backend import PostgresBackend

                return PostgresBackend(state, data)
    except ImportError:
        raise extra_missing("state.url: PostgreSQL", "postgres") from None


def export_of(folder: Path) -> FolderExport:
    """Open the SQLite state in this folder as the source of `antiphon admin move`. Raises `StoreError`."""
    from antiphon.stores.sqlite.exporting import FolderExport

    return FolderExport(folder)


def import_into(url: str, name: str) -> DatabaseImport:
    """Open the PostgreSQL database at this URL as the target of `antiphon admin move`. `name`: the URL without the
    password, for messages. Raises `ConfigError` when the driver is not installed."""
    try:
        from antiphon.stores.postgres.importing import DatabaseImport
    except ImportError:
        raise extra_missing("--to: PostgreSQL", "postgres") from None
    return DatabaseImport(url, name)
