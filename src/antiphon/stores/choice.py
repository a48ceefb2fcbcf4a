"""Chooses the backend by the scheme of `state.url`.

Lives here: which backends there are. Not here: what a backend is (`backend.py`), the backends, each a package with all
its SQL (`sqlite/`, `postgres/`).

Invariant: no other file outside a backend imports it, and it is imported when it is chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from antiphon.config.state import StateSettings
from antiphon.extras import extra_missing
from antiphon.stores.backend import Backend

if TYPE_CHECKING:
    from antiphon.stores.postgres.importing import DatabaseImport as DatabaseImport
    from antiphon.stores.sqlite.exporting import FolderExport as FolderExport


def backend_of(state: StateSettings, data: Path) -> Backend:
    """The backend of this state. `data`: the data folder. Raises `ConfigError` when its driver is missing."""
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
    """The state in this folder, to be moved away. Raises `StoreError`."""
    from antiphon.stores.sqlite.exporting import FolderExport

    return FolderExport(folder)


def import_into(url: str, name: str) -> DatabaseImport:
    """The database at this URL, which is shown as `name`, to be moved to. Raises `ConfigError` when its driver is
    missing."""
    try:
        from antiphon.stores.postgres.importing import DatabaseImport
    except ImportError:
        raise extra_missing("--to: PostgreSQL", "postgres") from None
    return DatabaseImport(url, name)
