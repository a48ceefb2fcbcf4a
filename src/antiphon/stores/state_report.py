"""Reports on the state's database for `antiphon doctor`, before the first start or while processes use the database.

Lives here: findings about the schema and about shared keys. Not here: findings of each backend (`Backend.examine`), the
output of findings (`commands/doctor/command.py`).

Invariants: the report only reads the database, and its findings contain no password.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from antiphon.config.state import StateSettings
from antiphon.errors import AntiphonError
from antiphon.stores.backend import StateFinding, StateNeeds
from antiphon.stores.choice import backend_of
from antiphon.stores.deployment import Keys, to_note
from antiphon.stores.schema_steps import missing_steps, oldest_schema


async def examine_state(state: StateSettings, data: Path, wanted: StateNeeds) -> AsyncIterator[StateFinding]:
    """Yield each finding as soon as it is known. An `AntiphonError` becomes a finding of the verdict `problem`."""
    try:
        async for said in backend_of(state, data).examine(wanted, _shared(state, data, wanted.keys)):
            yield said
    except AntiphonError as error:
        yield StateFinding("problem", str(error))


async def _shared(state: StateSettings, data: Path, keys: Keys) -> AsyncIterator[StateFinding]:
    async with backend_of(state, data).open_schemas(seconds=state.deadline) as schemas:
        for schema in schemas:
            applied = await schema.applied()
            missing = missing_steps(applied, schema.steps)
            if not missing:
                newer = len(applied) - len(schema.steps)
                more = f", and {newer} of a newer build" if newer else ""
                serves = f"builds from schema {oldest_schema(applied)} on can serve"
                yield StateFinding("ok", f"{schema.name}: schema {len(schema.steps)}{more}; {serves}")
            elif state.migrate == "check":
                yield StateFinding(
                    "problem",
                    f"{schema.name} lacks {len(missing)} schema steps",
                    "run 'antiphon migrate up', then start",
                )
            elif applied:
                yield StateFinding(
                    "note", f"{schema.name} lacks {len(missing)} schema steps", "the next start applies them"
                )
            else:
                yield StateFinding("ok", f"{schema.name} is new: the first start makes its schema")
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
    to_note(recorded, keys)
    yield StateFinding("ok", "owner.key and sealing.keys match the other machines'")
