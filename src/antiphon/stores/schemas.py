"""An operator's way to the schema: what is applied, what is missing, and changing it.

Lives here: whether a start may go on (`state.migrate: check`), and making an empty step in the source tree. Not here:
what steps mean (`schema_steps.py`), which databases a state has and applying steps (each backend's
`stores/<backend>/schema.py` and `stores/<backend>/migrate.py`), the command line.

Invariant: looking makes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.backend import Schema
from antiphon.stores.choice import backend_of
from antiphon.stores.schema_steps import missing_steps

_STEP_NAME = re.compile(r"[a-z0-9_]{1,60}")
_EMPTY = """\
-- serves: {number}
-- What changes, and why. The number above is the oldest schema whose builds can go on with this step: lower it to the
-- last one before it when the step only adds (and makes no trigger).
"""


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
