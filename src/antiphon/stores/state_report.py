"""What an operator wants to know of the place where state lies, before and while processes use it.

Lives here: the choice of a backend by `state.url`, and what is said of the schema and of shared keys. Not here: what
one asks a server (`postgres/examining.py`), how it is shown (`commands/doctor.py`).

Invariants: nothing is made or changed by being looked at; no password is in what is said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from antiphon.config.state import StateSettings
from antiphon.errors import AntiphonError
from antiphon.extras import extra_missing
from antiphon.stores.deployment import Keys, open_deployment, to_note
from antiphon.stores.moved_mark import check_not_moved
from antiphon.stores.said import Said, Wanted
from antiphon.stores.schema_steps import missing_steps, oldest_schema
from antiphon.stores.schemas import open_schemas


async def examine_state(state: StateSettings, data: Path, wanted: Wanted) -> AsyncIterator[Said]:
    """Everything that can be said, each as soon as it is known; never raises `AntiphonError`."""
    if state.place.kind == "memory":
        yield Said("note", "everything is in memory", "nothing outlives the process; name a database in state.url")
        return
    try:
        if state.place.kind == "postgresql":
            try:
                from antiphon.stores.postgres.examining import examine
            except ImportError:
                raise extra_missing("state.url: PostgreSQL", "postgres") from None
            async for said in examine(state, wanted):
                yield said
                if said.verdict == "problem":
                    # What does not answer, or will not do, has no schema worth a look.
                    return
        else:
            check_not_moved(state.databases(data))
        async for said in _schema(state, data):
            yield said
        if state.place.kind != "postgresql":
            async for said in _lost(state, data):
                yield said
        async for said in _keys(state, wanted.keys):
            yield said
    except AntiphonError as error:
        yield Said("problem", str(error))


async def _schema(state: StateSettings, data: Path) -> AsyncIterator[Said]:
    async with open_schemas(state, data, seconds=state.deadline) as schemas:
        for schema in schemas:
            applied = await schema.applied()
            missing = missing_steps(applied, schema.steps)
            if not missing:
                newer = len(applied) - len(schema.steps)
                more = f", and {newer} of a newer build" if newer else ""
                serves = f"builds from schema {oldest_schema(applied)} on can serve"
                yield Said("ok", f"{schema.name}: schema {len(schema.steps)}{more}; {serves}")
            elif state.migrate == "check":
                yield Said(
                    "problem",
                    f"{schema.name} lacks {len(missing)} schema steps",
                    "run 'antiphon migrate up', then start",
                )
            elif applied:
                yield Said("note", f"{schema.name} lacks {len(missing)} schema steps", "the next start applies them")
            else:
                yield Said("ok", f"{schema.name} is new: the first start makes its schema")


async def _lost(state: StateSettings, data: Path) -> AsyncIterator[Said]:
    """Tables and indexes that a database file lacks: without an index queries are slow, without a table requests
    fail."""
    from antiphon.stores.sqlite.schema import sqlite_schemas

    for schema in sqlite_schemas(state.databases(data)):
        number, gone = await schema.lacking()
        for name, sql in gone.items():
            if name.startswith("table"):
                yield Said("problem", f"{schema.name} lacks the {name}", "restore a backup (antiphon admin restore)")
            else:
                made = f"create it again with sqlite3: {' '.join(sql.split())}" if sql else "restore a backup"
                yield Said("note", f"{schema.name}: the {name} is missing: its queries are slow", made)
        if number and not gone:
            yield Said("ok", f"{schema.name}: all {number} tables and indexes of the schema are there")


async def _keys(state: StateSettings, keys: Keys) -> AsyncIterator[Said]:
    deployment = await open_deployment(state)
    if deployment is None:
        return
    try:
        recorded = await deployment.read()
    except AntiphonError:
        # Before the first start there is no table.
        return
    finally:
        await deployment.aclose()
    if not recorded:
        yield Said("ok", "no process has started on this database: the first one's keys are noted")
        return
    to_note(recorded, keys)
    yield Said("ok", "owner.key and sealing.keys are those of the other machines")
