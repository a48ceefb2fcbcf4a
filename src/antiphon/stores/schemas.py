"""An operator's way to the schema: what is applied, what is missing, and changing it.

Lives here: which databases a state has, the choice of a backend by `state.url`, whether a start may go on
(`state.migrate: check`), and making an empty step in the source tree. Not here: what steps mean (`schema_steps.py`),
applying them (each backend's `stores/<backend>/migrate.py`), the command line.

Invariant: looking makes nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError, StoreError
from antiphon.extras import extra_missing
from antiphon.stores.schema_steps import Applied, Step, missing_steps

_STEP_NAME = re.compile(r"[a-z0-9_]{1,60}")
_EMPTY = """\
-- serves: {number}
-- What changes, and why. The number above is the oldest schema whose builds can go on with this step: lower it to the
-- last one before it when the step only adds (and makes no trigger).
"""


class Schema(Protocol):
    """The schema of one database, with the numbered steps that this build has for it."""

    @property
    def name(self) -> str:
        """What an operator calls the database."""

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def folder(self) -> Path:
        """Where the steps' files are in this installation."""

    async def applied(self) -> Sequence[Applied]:
        """What the database has; nothing when there is none. Raises `StoreError`."""

    async def up(self) -> Sequence[Step]:
        """Apply what is missing; what this call applied. Raises `StoreError`."""

    async def undo(self) -> Step:
        """Undo the last step. Raises `StoreError` where it cannot be."""


@asynccontextmanager
async def open_schemas(
    state: StateSettings, data: Path, *, seconds: float = 10.0, within: float = 0.0
) -> AsyncIterator[list[Schema]]:
    """All schemas of this state. `seconds`: how long one step may take; `within`: how long a server that does not
    answer is waited for. Raises `ConfigError` and `StoreError`."""
    if state.place.kind == "memory":
        raise ConfigError("state.url: memory: has no schema; name a database in state.url")
    if state.place.kind == "postgresql":
        try:
            from antiphon.stores.postgres.schema import open_postgres_schemas
        except ImportError:
            raise extra_missing("state.url: PostgreSQL", "postgres") from None
        assert state.url is not None
        # Behind a pooler a long step is better made at the server itself.
        url = state.direct_url or state.url
        setting = "state.url" if state.direct_url is None else "state.direct_url"
        async with open_postgres_schemas(url.get_secret_value(), seconds, setting, within=within) as opened:
            yield list(opened)
        return
    from antiphon.stores.sqlite.schema import sqlite_schemas

    yield list(sqlite_schemas(state.databases(data)))


async def check_migrated(state: StateSettings, data: Path) -> None:
    """Raises `StoreError` when `state.migrate` is `check` and a database lacks a step of this build."""
    if state.migrate == "auto" or state.place.kind == "memory":
        return
    async with open_schemas(state, data, seconds=state.deadline, within=state.start_within) as schemas:
        for schema in schemas:
            missing = missing_steps(await schema.applied(), schema.steps)
            if missing:
                raise StoreError(
                    f"{schema.name} lacks {len(missing)} schema steps, from {missing[0].name} on, and state.migrate is "
                    "'check': run `antiphon migrate up` once, then start again."
                )


def create_step(schema: Schema, name: str) -> Path:
    """Make a new empty step in the source tree; its file. Raises `ConfigError`."""
    if not _STEP_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a step: small letters, digits and _ make one")
    if not (schema.folder.parents[4] / "pyproject.toml").exists():
        raise ConfigError(f"{schema.folder} is an installed package: steps are made in Antiphon's source tree")
    number = len(schema.steps) + 1
    path = schema.folder / f"{number:04}_{name}.sql"
    path.write_text(_EMPTY.format(number=number), encoding="utf-8")
    return path
