"""Archives of the state, where that lies on this machine.

Lives here: what is told of an archive, and whose archive it is. Not here: what is in it (`sqlite/backup.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError

KeyName = Literal["owner.key", "sealing.key"]
Keys = Mapping[KeyName, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Archived:
    """What an archive holds: how many contents of files, how many bytes in all, which keys. `vanished`: files that
    were deleted while it was made, and are not in it."""

    contents: int
    size: int
    keys: tuple[str, ...]
    vanished: int = 0


def make_archive(
    state: StateSettings, data: Path, target: Path, keys: Keys, *, with_keys: bool, with_contents: bool = True
) -> Archived:
    """Write an archive of the data folder. `keys`: all that are in force. `with_contents`: whether the contents of
    files lie there. Raises `ConfigError` and `StoreError`."""
    if state.place.kind != "sqlite":
        _refuse(state)
    from antiphon.stores.sqlite.backup import make_archive as archive

    databases = state.databases(data)
    return archive(data, target, keys, with_keys=with_keys, with_contents=with_contents, databases=databases)


def open_archive(state: StateSettings, source: Path, data: Path, keys: Keys) -> Archived:
    """Make the data folder from an archive. `keys`: those the settings give. Raises `ConfigError` and `StoreError`."""
    if state.place.kind != "sqlite":
        _refuse(state)
    if state.databases(data) != data:
        raise ConfigError(
            "state.url: an archive is restored into one folder; leave 'state.url' out, and move the databases after it"
        )
    from antiphon.stores.sqlite.backup import open_archive as restore

    return restore(source, data, keys)


def _refuse(state: StateSettings) -> NoReturn:
    raise ConfigError(
        f"state.url: archives are of SQLite, not of {state.place.shown}; PostgreSQL is backed up with its own tools "
        "(pg_dump), together with the contents of files and the keys"
    )
