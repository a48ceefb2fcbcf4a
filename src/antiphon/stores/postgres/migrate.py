"""Checks a PostgreSQL server and migrates its schema, while processes of older builds may still use the database.

Lives here: the checks of a server at a start, the wait for a server that does not answer, and the advice for the
operator. `antiphon migrate` also uses this module, to apply missing migrations or to undo the last migration. Not here:
the findings of `antiphon doctor` (`checks.py`), connections to a writable server (`connecting.py`), the definition of a
migration (`stores/compatibility.py`), the SQL of the migrations (`migrations/`).

A migration waits at most two seconds for a table lock, because all later statements on that table queue behind the
migration. After that time the migration fails, so that the queued statements run. Then this module runs the migration
again. The deadline of the `Database` limits a migration's statements: seconds at a start, minutes for
`antiphon migrate up`.

Invariants: the table `schema_migrations` records the applied migrations, numbered without a gap. The table
`vector_schema_migrations` records the migrations of the table of vectors. The recorded checksums equal those of this
build's migrations, as far as this build knows the migrations. One transaction applies a migration and records it. Only
one process at a time applies migrations.
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
from antiphon.stores.compatibility import AppliedStep, Schema, SchemaStep, missing_steps, read_steps, step_to_undo
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.failures import URL, code_of, may_heal

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
"""The key of the advisory lock that a process holds while it changes the schema."""

SCHEMA = "schema_migrations"
"""The table that records the applied migrations."""
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
"""The seconds by which the server's statement timeout is shorter than the pool's deadline. So the server's error, which
is more useful, arrives first."""
_TURN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts in seconds of a migration. `lock`: the wait for a table's lock. `pauses`: the pauses between attempts to
    apply the migration. `others`: the wait for another process that applies migrations, at least as long as a migration
    may take."""

    lock: float = 2.0
    pauses: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)
    others: float = 30.0


_PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Server:
    """The properties of a server that decide whether Antiphon can use it. `version`: the server's `server_version_num`.
    `shown`: the server's version as text, for messages."""

    version: int
    shown: str
    schema: str | None
    encoding: str


def check(server: Server) -> None:
    """Raise `StoreError` with advice when Antiphon cannot store its state on this server."""
    if server.version < OLDEST:
        said = f"PostgreSQL {server.shown} is too old: {OLDEST // 10_000} or newer is needed. Upgrade the server."
    elif server.encoding != "UTF8":
        said = f"PostgreSQL: the database's encoding is {server.encoding}. Create a database with the encoding UTF8."
    elif server.schema is None:
        said = (
            "PostgreSQL: no schema of the role's search_path exists. Create the schema, or set search_path to an "
            "existing schema."
        )
    else:
        return
    raise StoreError(said)


async def ask_server(database: Database) -> Server:
    """Read the server's properties. Raises `StoreError` when the server does not answer, or a pooler in front of the
    server allows no transactions."""

    async def work(connection: Connection) -> Server:
        (row,) = await connection.fetch(_ASK)
        return Server(*row)

    return await database.transaction(work)


async def check_server(database: Database) -> None:
    """Check that Antiphon can store its state on this server. Raises `StoreError` with advice."""
    check(await ask_server(database))


async def reach_server(database: Database, within: float) -> None:
    """Wait at most `within` seconds until the server answers, and check the server. Raises `StoreError`. If the server
    fails for a reason that waiting cannot remove, this function raises the error immediately."""
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
    """Return the migrations in this folder of the package, in the order of their numbers."""
    return read_steps(files("antiphon.stores.postgres") / folder)


async def migrate(
    database: Database, steps: Sequence[SchemaStep], table: str = SCHEMA, *, patience: Patience = _PATIENCE
) -> list[SchemaStep]:
    """Apply the missing migrations, one transaction each. Returns the migrations that this call applied. `table`: the
    table that records the applied migrations.

    Raises `StoreError` for a database that this build cannot use.
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
    """Undo the last applied migration and return it. Raises `StoreError` when the migration cannot be undone."""
    step_to_undo(await applied_steps(database, table), steps)

    async def one(connection: Connection) -> SchemaStep:
        step = step_to_undo(await _read(connection, table), steps)
        await connection.execute(step.down)
        await connection.execute(_FORGET.format(table=table), step.version)
        return step

    return await _alone(database, "the last one", one)


async def applied_steps(database: Database, table: str = SCHEMA) -> list[AppliedStep]:
    """Return the migrations that the database has applied. The result is empty for a new database."""
    if not (await database.fetch(_THERE.format(table=table)))[0][0]:
        return []
    return [AppliedStep(*row) for row in await database.fetch(_READ.format(table=table))]


async def _read(connection: Connection, table: str) -> list[AppliedStep]:
    return [AppliedStep(*row) for row in await connection.fetch(_READ.format(table=table))]


async def _alone(
    database: Database, name: str, work: Callable[[Connection], Awaitable[T]], patience: Patience = _PATIENCE
) -> T:
    """Run `work` in a transaction that holds the advisory lock for schema changes. Waits for other processes, and
    retries `work` when a table lock is not free."""
    longest = max(database.limits.deadline - _MARGIN, 0.1)
    limits = _LIMITS.format(lock=round(patience.lock * 1000), milliseconds=round(longest * 1000))
    loop = asyncio.get_running_loop()
    ends = loop.time() + max(patience.others, database.limits.deadline)

    async def unit(connection: Connection) -> T:
        # A separate statement takes the lock, so that the next statement sees the changes of other processes. The
        # statement does not wait for the lock, because a waiting session would hold a connection and a snapshot.
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
                    f"Schema step {name}: another process is changing the schema and does not finish. Find this "
                    "process in pg_stat_activity (application_name antiphon). Try again when that process has ended.",
                    reason="locked",
                ) from None
            await asyncio.sleep(_TURN_SECONDS)
        except StoreError as error:
            code = code_of(error.__cause__)
            if code == "42501":
                raise StoreError(
                    f"Schema step {name}: the role may not change the schema. Run `antiphon migrate up` as the owner "
                    "of the tables, or grant the role CREATE on the schema of the tables. (Since PostgreSQL 15, "
                    "roles do not have this right on the schema 'public' by default.)"
                ) from error
            if code == "57014" or error.reason == "slow":
                raise StoreError(
                    f"Schema step {name} takes longer than {database.limits.deadline:g} s. Run `antiphon migrate up`, "
                    "which allows a step more time (--seconds).",
                    reason="slow",
                ) from error
            if code != "55P03":
                raise
            if tries == len(patience.pauses):
                raise StoreError(
                    f"Schema step {name} did not get the lock of a table in {tries + 1} tries, because other "
                    "transactions hold the lock. Look for long transactions in pg_stat_activity (a backup, an idle "
                    "transaction), and try again.",
                    reason="locked",
                ) from error
            await asyncio.sleep(patience.pauses[tries])
            tries += 1


class _Busy(Exception):
    """Another process holds the advisory lock, because it is changing the schema."""


@dataclass(frozen=True, slots=True)
class PostgresSchema(Schema):
    """Implements `Schema` for a PostgreSQL database. `table` records the applied migrations."""

    database: Database
    table: str = SCHEMA

    async def applied(self) -> Sequence[AppliedStep]:
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
    """Yield the schemas of one database: the main schema, and the schema of vectors if it exists. Raises `StoreError`.

    `seconds`: the timeout of a migration. `setting`: the name of the setting with the URL. `within`: the seconds to
    wait for a server that does not answer."""
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
