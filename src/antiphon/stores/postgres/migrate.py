"""Checks a PostgreSQL server and migrates its schema, while older builds may still serve from it.

Lives here: the questions to a server at a start, how long a start waits for their answers, and what to do about each;
applying the numbered steps that a database has not seen, undoing the last one, an operator's way to both. Not here:
what else an operator may want to know (`checks.py`), connections and that they take writes (`connecting.py`), what a
step is and who can serve with it (`stores/schema_steps.py`), what the tables mean.

A step waits for the locks it needs for two seconds, since all who come after it wait behind it; then it lets them
through and tries again. How long its statements may take is what the `Database` allows: seconds at a start, minutes for
`antiphon migrate up`.

Invariants: the steps in the table (`schema_migrations`; vectors have one of their own) are numbered without a gap, with
the checksums of the packaged ones as far as these go; each step is applied in one transaction with its record; one
process at a time applies steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import structlog

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.failures import URL, code_of, may_heal
from antiphon.stores.schema_steps import Applied, Schema, SchemaStep, missing_steps, read_steps, step_to_undo

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 1.0
_LINE_SECONDS = 5.0
OLDEST = 150_000
_ASK = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS shown,
       current_schema() AS schema, current_setting('server_encoding') AS encoding
"""

LOCK = 0x616E7469_70686F6E  # "antiphon"
"""The advisory lock of who changes the schema."""

SCHEMA = "schema_migrations"
"""The table that says which steps of the schema were applied."""
VECTOR_SCHEMA = "vector_schema_migrations"
VECTOR_STEPS = "vector_migrations"

_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
  version integer PRIMARY KEY,
  name text NOT NULL,
  sha256 text NOT NULL,
  serves integer NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_THERE = "SELECT to_regclass('{table}') IS NOT NULL"
_READ = "SELECT version, name, sha256, serves FROM {table} ORDER BY version"
_RECORD = "INSERT INTO {table} (version, name, sha256, serves) VALUES ($1, $2, $3, $4)"
_FORGET = "DELETE FROM {table} WHERE version = $1"
_LIMITS = "SET LOCAL lock_timeout = {lock}; SET LOCAL statement_timeout = {milliseconds}"

_MARGIN = 0.5
"""Seconds between the server's limit and ours: its answer says more."""
_TURN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for the lock of a table, then between the tries, and for another process that applies steps (at least
    as long as a step may take)."""

    lock: float = 2.0
    pauses: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)
    others: float = 30.0


_PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself. `version` as in `server_version_num`, `shown` for people."""

    version: int
    shown: str
    schema: str | None
    encoding: str


def check(server: Server) -> None:
    """Raises `StoreError` where state cannot be kept on the server, with a sentence that says what to do."""
    if server.version < OLDEST:
        said = f"PostgreSQL {server.shown} is too old: {OLDEST // 10_000} or newer is needed. Upgrade the server."
    elif server.encoding != "UTF8":
        said = f"PostgreSQL: the database's encoding is {server.encoding}. Create one with UTF8."
    elif server.schema is None:
        said = "PostgreSQL: no schema of the role's search_path is there. Create one, or set search_path to one."
    else:
        return
    raise StoreError(said)


async def ask_server(database: Database) -> Server:
    """Ask it. Raises `StoreError` when it does not answer, or a pooler before it takes no transactions."""

    async def work(connection: Connection) -> Server:
        (row,) = await connection.fetch(_ASK)
        return Server(*row)

    return await database.transaction(work)


async def check_server(database: Database) -> None:
    """Raises `StoreError` with a sentence that says what to do."""
    check(await ask_server(database))


async def reach_server(database: Database, within: float) -> None:
    """Wait until the server answers, for at most `within` seconds, and check it. Raises `StoreError`: at once for what
    waiting does not mend."""
    clock = asyncio.get_running_loop().time
    ends = clock() + within
    line_due = clock()
    while True:
        try:
            return await check_server(database)
        except StoreError as error:
            left = ends - clock()
            if not may_heal(error) or left <= 0:
                raise
            if clock() >= line_due:
                line_due = clock() + _LINE_SECONDS
                _log.warning("waiting_for_database", cause=str(error), gives_up_in=round(left, 1))
        await asyncio.sleep(min(_AGAIN_SECONDS, left))


def packaged_steps(folder: str = "migrations") -> tuple[SchemaStep, ...]:
    """The steps shipped with this build, in order, numbered 1, 2, 3, … without a gap."""
    return read_steps(files("antiphon.stores.postgres") / folder)


async def migrate(
    database: Database, steps: Sequence[SchemaStep], table: str = SCHEMA, *, patience: Patience = _PATIENCE
) -> list[SchemaStep]:
    """Apply the steps that are missing, one transaction each; returns those that this call applied. `table`: where
    they are noted.

    Raises `StoreError` for a database that this build cannot serve from.
    """
    done: list[SchemaStep] = []
    while missing := missing_steps(await applied_steps(database, table), steps):

        async def one(connection: Connection) -> SchemaStep | None:
            await connection.execute(_CREATE.format(table=table))
            missing = missing_steps(await _read(connection, table), steps)
            if not missing:
                return None
            step = missing[0]
            await connection.execute(step.sql)
            await connection.execute(_RECORD.format(table=table), step.version, step.name, step.sha256, step.serves)
            return step

        step = await _alone(database, missing[0].name, one, patience)
        if step is not None:
            done.append(step)
    return done


async def undo(database: Database, steps: Sequence[SchemaStep], table: str = SCHEMA) -> SchemaStep:
    """Undo the last step; raises `StoreError` where it cannot be undone."""
    step_to_undo(await applied_steps(database, table), steps)

    async def one(connection: Connection) -> SchemaStep:
        step = step_to_undo(await _read(connection, table), steps)
        await connection.execute(step.down)
        await connection.execute(_FORGET.format(table=table), step.version)
        return step

    return await _alone(database, "the last one", one)


async def applied_steps(database: Database, table: str = SCHEMA) -> list[Applied]:
    """What the database has; nothing when it is new."""
    if not (await database.fetch(_THERE.format(table=table)))[0][0]:
        return []
    return [Applied(*row) for row in await database.fetch(_READ.format(table=table))]


async def _read(connection: Connection, table: str) -> list[Applied]:
    return [Applied(*row) for row in await connection.fetch(_READ.format(table=table))]


async def _alone(
    database: Database, name: str, work: Callable[[Connection], Awaitable[T]], patience: Patience = _PATIENCE
) -> T:
    """Do the work in a transaction while no other process changes the schema."""
    longest = max(database.limits.deadline - _MARGIN, 0.1)
    limits = _LIMITS.format(lock=round(patience.lock * 1000), milliseconds=round(longest * 1000))
    loop = asyncio.get_running_loop()
    ends = loop.time() + max(patience.others, database.limits.deadline)

    async def unit(connection: Connection) -> T:
        # As a statement of its own: what follows must see what was done while this waited. It does not wait at the
        # server: whoever does that holds a connection, and a snapshot.
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK):
            raise _Busy
        await connection.execute(limits)
        return await work(connection)

    tries = 0
    while True:
        try:
            return await database.transaction(unit)
        except _Busy:
            if loop.time() > ends:
                raise StoreError(
                    f"Schema step {name}: another process changes the schema and does not end. Look for it in "
                    "pg_stat_activity (application_name antiphon), and start again when it is gone.",
                    reason="locked",
                ) from None
            await asyncio.sleep(_TURN_SECONDS)
        except StoreError as error:
            code = code_of(error.__cause__)
            if code == "42501":
                raise StoreError(
                    f"Schema step {name}: the role may not change the schema. Run `antiphon migrate up` as the owner "
                    "of the tables, or GRANT CREATE ON SCHEMA to the role (public has lost it in PostgreSQL 15)."
                ) from error
            if code == "57014" or error.reason == "slow":
                raise StoreError(
                    f"Schema step {name} takes longer than {database.limits.deadline:g} s. Run `antiphon migrate up`, "
                    "which gives it more time (--seconds).",
                    reason="slow",
                ) from error
            if code != "55P03":
                raise
            if tries == len(patience.pauses):
                raise StoreError(
                    f"Schema step {name} did not get the lock of a table in {tries + 1} tries: other transactions hold "
                    "it. Look for long ones in pg_stat_activity (a backup, an idle transaction), and try again.",
                    reason="locked",
                ) from error
            await asyncio.sleep(patience.pauses[tries])
            tries += 1


class _Busy(Exception):
    """Another process changes the schema."""


@dataclass(frozen=True, slots=True)
class PostgresSchema(Schema):
    """`Schema` whose steps are noted in one table."""

    database: Database
    table: str = SCHEMA

    async def applied(self) -> Sequence[Applied]:
        """See `Schema`."""
        return await applied_steps(self.database, self.table)

    async def up(self) -> Sequence[SchemaStep]:
        """See `Schema`."""
        return await migrate(self.database, self.steps, self.table)

    async def undo(self) -> SchemaStep:
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
            steps, folder = packaged_steps(VECTOR_STEPS), package / VECTOR_STEPS
            schemas.append(PostgresSchema("vectors", steps, folder, database, VECTOR_SCHEMA))
        yield tuple(schemas)
    finally:
        await database.aclose()
