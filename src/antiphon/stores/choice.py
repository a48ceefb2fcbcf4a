"""The choice of a backend by the kind of `state.url`.

Lives here: which backends there are. Not here: what a backend is (`backend.py`), the backends, each a package with all
its SQL (`sqlite/`, `postgres/`).

Invariant: no other file outside a backend imports it, and it is imported when it is chosen.
"""

from __future__ import annotations

from pathlib import Path

from antiphon.config.state import StateSettings
from antiphon.config.state_url import Kind
from antiphon.extras import extra_missing
from antiphon.stores.backend import Backend


def backend_of(state: StateSettings, data: Path) -> Backend:
    """The backend of this state. `data`: the data folder. Raises `ConfigError` when its driver is missing."""
    return kind_of_backend(state.place.kind)(state, data)


def kind_of_backend(kind: Kind, setting: str = "state.url") -> type[Backend]:
    """The backend of this kind of URL. `setting`: what named it. Raises `ConfigError` when its driver is missing."""
    try:
        return _BACKENDS[kind]()
    except ImportError:
        raise extra_missing(f"{setting}: PostgreSQL", "postgres") from None


def _sqlite() -> type[Backend]:
    from antiphon.stores.sqlite.backend import SqliteBackend

    return SqliteBackend


def _memory() -> type[Backend]:
    from antiphon.stores.sqlite.backend import MemoryBackend

    return MemoryBackend


def _postgresql() -> type[Backend]:
    from antiphon.stores.postgres.backend import PostgresBackend

    return PostgresBackend


_BACKENDS = {"sqlite": _sqlite, "memory": _memory, "postgresql": _postgresql}
