"""An operator's way to the state: whether there is any, whose, and whether it can be worked with.

Lives here: the choice of a backend by `state.url`. Not here: the port (`engine/ports/owner_data.py`), the command line.

Invariant: nothing is made by being looked at.
"""

from __future__ import annotations

from pathlib import Path

from antiphon.config.state import StateSettings
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.errors import ConfigError
from antiphon.extras import extra_missing
from antiphon.stores.sealed.bodies import Bodies

_UNSEALED = Bodies((), seals=False)


def check_there(state: StateSettings, data: Path) -> None:
    """Raises `ConfigError` when there is nothing that an operator could work on."""
    if state.place.kind == "memory":
        raise ConfigError("state.url: memory: is the state of one process, which nobody else can look at")
    if state.place.kind == "sqlite":
        from antiphon.stores.sqlite.opening import SESSIONS_FILE

        folder = state.databases(data)
        if not (folder / SESSIONS_FILE).exists():
            raise ConfigError(f"data: there is no database in {folder}; name the folder with --data or --config")


async def open_owner_data(state: StateSettings, data: Path, bodies: Bodies = _UNSEALED) -> OwnerData:
    """The data of all owners, to be closed; `bodies` opens what is sealed. Raises `ConfigError` and `StoreError`."""
    check_there(state, data)
    if state.place.kind == "postgresql":
        try:
            from antiphon.stores.postgres.opening import open_postgres_owners
        except ImportError:
            raise extra_missing("state.url: PostgreSQL", "postgres") from None
        return await open_postgres_owners(state, bodies)
    from antiphon.stores.sqlite.owner_data import SqliteOwnerData

    return SqliteOwnerData(state.databases(data), bodies)


def has_rows(state: StateSettings, data: Path, *, hashed: bool) -> bool:
    """Whether anything is kept on this machine that depends on the keys of the data folder; with `hashed`, anything of
    an owner who is known by the hash of a token. Raises `StoreError`."""
    if state.place.kind != "sqlite":
        # With a shared database keys are settings, and what is in memory begins with the process.
        return False
    from antiphon.stores.sqlite.admin import has_rows as rows_in

    return rows_in(state.databases(data), hashed=hashed)
