"""The schemas of a PostgreSQL database, for an operator.

Lives here: looking at and changing them. Not here: what is asked of them (`stores/schemas.py`), applying
steps (`migrate.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.failures import URL
from antiphon.stores.postgres.migrate import SCHEMA, applied_steps, migrate, packaged_steps, undo
from antiphon.stores.postgres.server_check import reach_server
from antiphon.stores.postgres.vector_table import SCHEMA as VECTOR_SCHEMA
from antiphon.stores.schema_steps import Applied, Step


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """`Schema` whose steps are noted in one table."""

    name: str
    steps: tuple[Step, ...]
    folder: Path
    database: Database
    table: str = SCHEMA

    async def applied(self) -> Sequence[Applied]:
        """See `Schema`."""
        return await applied_steps(self.database, self.table)

    async def up(self) -> Sequence[Step]:
        """See `Schema`."""
        return await migrate(self.database, self.steps, self.table)

    async def undo(self) -> Step:
        """See `Schema`."""
        return await undo(self.database, self.steps, self.table)


@asynccontextmanager
async def open_postgres_schemas(
    url: str, seconds: float, setting: str = URL, *, within: float = 0.0
) -> AsyncIterator[tuple[PostgresSchema, ...]]:
    """Those of one database, that of vectors where there are any. `seconds`: how long a step may take;
    `setting`: what names the database; `within`: how long a server that does not answer is waited for. Raises
    `StoreError`."""
    database = Database(url, DatabaseLimits(size=1, deadline=seconds), setting=setting)
    package = Path(str(files("antiphon.stores.postgres")))
    try:
        await reach_server(database, within)
        schemas = [PostgresSchema("postgresql", packaged_steps(), package / "migrations", database)]
        if await applied_steps(database, VECTOR_SCHEMA):
            folder = package / "vector_migrations"
            schemas.append(PostgresSchema("vectors", packaged_steps(folder), folder, database, VECTOR_SCHEMA))
        yield tuple(schemas)
    finally:
        await database.aclose()
