"""Diagnoses a PostgreSQL server for `antiphon doctor`, with more checks than a start requires.

Lives here: the queries, the reported results ("findings"), and the list of indexes that the migrations create, parsed
from their SQL. Without one of these indexes, results are correct, but many queries are slow. Not here: the checks at a
start (`migrate.py`), the migrations (`stores/compatibility.py`), the indexes of large vector stores, which Antiphon
recreates itself (`vectors/table.py`).

The checks recognize a connection pooler (pgbouncer) by the process ids of the connections. At login, a PostgreSQL
server sends the id of its backend process, but a pooler sends an invented id. If the pooler runs in transaction mode,
two clients that send queries in turn get the same backend process. The checks cannot read the pooler's limits, because
a pooler shows them only to its administrators.

Invariant: the checks only read the database.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from antiphon.config.state import StateSettings
from antiphon.errors import StoreError
from antiphon.stores.backend import StateFinding, StateNeeds
from antiphon.stores.compatibility import SchemaStep
from antiphon.stores.postgres.connecting import Connection, connect, kinds_of_servers
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.failures import DIRECT_URL
from antiphon.stores.postgres.migrate import (
    SCHEMA,
    VECTOR_SCHEMA,
    VECTOR_STEPS,
    applied_steps,
    ask_server,
    check,
    check_server,
    packaged_steps,
)
from antiphon.stores.postgres.vectors.table import VectorTable

_TRIPS = 9
_SLOW_TRIP = 0.005
_CLOCK_SECONDS = 2.0
_OLD_TRANSACTION = 600
_TURNS = 4

_CONNECTIONS = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used
"""
# Identifies a server by its start time in microseconds, and the database by its name.
_WHICH = "SELECT pg_postmaster_start_time()::text, current_database()"
_FOREIGN = """
SELECT DISTINCT tableowner FROM pg_tables
WHERE schemaname = current_schema() AND tableowner <> current_user
  AND tablename IN ('schema_migrations', 'responses', 'jobs', 'vector_stores') ORDER BY 1
"""
_WAITS = """
SELECT current_setting('synchronous_standby_names') <> ''
       AND current_setting('synchronous_commit') NOT IN ('off', 'local') AS waits
"""
_LOOKS = "SELECT current_setting('client_connection_check_interval') <> '0' AS looks"
_OLDEST = """
SELECT coalesce(extract(epoch FROM max(now() - xact_start)), 0)::int FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database()
"""

_INDEX = re.compile(r"^(CREATE (?:UNIQUE )?INDEX )(\w+)( [^;]+;)", re.MULTILINE)
_DROP = re.compile(r"^DROP INDEX (\w+)", re.MULTILINE)
_TABLE = re.compile(r"^CREATE TABLE (\w+) \((.*?)^\)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"--.*")
_UNIQUE_COLUMN = re.compile(r"^ +(\w+) [^(\n]*\bUNIQUE\b", re.MULTILINE)
_UNIQUE_COLUMNS = re.compile(r"^ +UNIQUE \(([^)]+)\)", re.MULTILINE)

_LOST = """
SELECT name, i.indisvalid AS valid FROM unnest($1::text[]) AS name
LEFT JOIN pg_index i ON i.indexrelid = to_regclass(name) WHERE i.indisvalid IS NOT true ORDER BY 1
"""


async def examine(state: StateSettings, wanted: StateNeeds) -> AsyncIterator[StateFinding]:
    """Yield all findings of `antiphon doctor` about the server at `state.url`. After a finding with the verdict
    `problem`, `antiphon doctor` runs no further checks of the database. Raises `StoreError`."""
    assert state.url is not None
    database = Database(state.url.get_secret_value(), DatabaseLimits(size=2, deadline=state.deadline))
    try:
        server = await ask_server(database)
        check(server)
        yield StateFinding("ok", f"{state.place.shown}: PostgreSQL {server.shown}")
        async for said in _servers(database, state):
            yield said
        yield await _round_trip(database)
        yield await _clock(database)
        yield await _connections(database, wanted.connections)
        async for said in _pooler(database, state):
            yield said
        async for said in _direct(database, state):
            yield said
        yield await _vector(database, needed=wanted.vectors)
        async for said in _tables(database):
            yield said
        async for said in _indexes(database):
            yield said
    finally:
        await database.aclose()


async def _servers(database: Database, state: StateSettings) -> AsyncIterator[StateFinding]:
    assert state.url is not None
    kinds = await kinds_of_servers(state.url.get_secret_value(), state.deadline)
    if not kinds:
        return
    for place, kind in kinds.items():
        if kind == "unusable":
            yield StateFinding(
                "note",
                f"server {place} cannot be reached, or refuses the login",
                "check that server, because Antiphon cannot fail over to it now",
            )
        else:
            does = "takes writes" if kind == "primary" else "is a replica, or is read-only"
            yield StateFinding("ok", f"server {place} {does}")
    if list(kinds.values()).count("primary") > 1:
        yield StateFinding(
            "note",
            "several servers in state.url take writes",
            "unless these servers are poolers in front of one primary, stop all of them except one immediately, "
            "because writes to the other servers are lost",
        )
    (row,) = await database.fetch(_WAITS)
    if row["waits"]:
        yield StateFinding("ok", "replication is synchronous: a standby has every acknowledged write")
    else:
        yield StateFinding(
            "note",
            "replication is asynchronous: a failover loses the last acknowledged writes",
            "to avoid this, set synchronous_standby_names, and synchronous_commit to on",
        )


async def _round_trip(database: Database) -> StateFinding:
    took = []
    for _ in range(_TRIPS):
        begun = time.perf_counter()
        await database.fetch("SELECT 1")
        took.append(time.perf_counter() - begun)
    median = statistics.median(took)
    what = f"a query takes {median * 1000:.1f} ms (round trip)"
    if median > _SLOW_TRIP:
        return StateFinding(
            "note", what, "each stored response waits for several queries; move the database nearer to this machine"
        )
    return StateFinding("ok", what)


async def _clock(database: Database) -> StateFinding:
    before = time.time()
    (row,) = await database.fetch("SELECT extract(epoch FROM clock_timestamp())::float8")
    ahead = row[0] - (before + time.time()) / 2
    if abs(ahead) > _CLOCK_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        return StateFinding(
            "note",
            f"the database's clock is {abs(ahead):.1f} s {direction} this machine's clock",
            "run NTP on both machines, because leases use the database's clock and clients see this machine's clock",
        )
    return StateFinding("ok", f"the clocks of the database and of this machine differ by {abs(ahead) * 1000:.0f} ms")


async def _connections(database: Database, wanted: int) -> StateFinding:
    (row,) = await database.fetch(_CONNECTIONS)
    what = f"{row['used']} of {row['most']} connections of the server are in use; this machine opens up to {wanted}"
    if row["used"] + wanted > row["most"]:
        return StateFinding(
            "note", what, ("raise max_connections, lower state.pool or workers, or put a pooler in front of the server")
        )
    return StateFinding("ok", what)


async def _pooler(database: Database, state: StateSettings) -> AsyncIterator[StateFinding]:
    if not await database.transaction(_is_pooled):
        yield StateFinding("ok", "there is no pooler in front of the server")
        return
    assert state.url is not None
    if not await _shares(state.url.get_secret_value(), state.deadline):
        yield StateFinding(
            "note",
            "the pooler reserves a server connection for each client (pool_mode = session)",
            "set pool_mode = transaction, so that clients share connections",
        )
    yield StateFinding(
        "ok",
        "there is a pooler in front of the server",
        "for faster recovery after a restart of the server, set server_login_retry = 1, server_connect_timeout = 3 "
        "and query_wait_timeout = 4 in pgbouncer (with pgbouncer's defaults the first answer comes 13 s later)",
    )
    (row,) = await database.fetch(_LOOKS)
    if not row["looks"]:
        yield StateFinding(
            "note",
            "behind the pooler, a cancelled statement continues and occupies a connection of the server",
            "run ALTER ROLE … SET client_connection_check_interval = '1s' for the role of state.url; "
            "otherwise statements that wait for a locked table can use up max_connections",
        )
    if state.direct_url is None:
        yield StateFinding(
            "note",
            "state.direct_url is not set",
            "set state.direct_url to the server's own address, because long operations and LISTEN must bypass "
            "the pooler",
        )


async def _direct(database: Database, state: StateSettings) -> AsyncIterator[StateFinding]:
    """Yield the findings of `antiphon doctor` about `state.direct_url`, if that setting is set. Raises `StoreError`."""
    if state.direct_url is None:
        return
    limits = DatabaseLimits(size=1, deadline=state.deadline)
    direct = Database(state.direct_url.get_secret_value(), limits, setting=DIRECT_URL)
    try:
        await check_server(direct)
        if tuple((await direct.fetch(_WHICH))[0]) != tuple((await database.fetch(_WHICH))[0]):
            yield StateFinding(
                "problem",
                "state.direct_url leads to another database than state.url",
                "name the same database in both settings; now Antiphon would change the schema of the wrong database",
            )
        elif await direct.transaction(_is_pooled):
            yield StateFinding(
                "note",
                "state.direct_url leads through a pooler, which does not forward notifications",
                "set state.direct_url to the server's own address, so that LISTEN works, or unset state.direct_url; "
                "now the processes poll the database",
            )
        else:
            yield StateFinding("ok", "state.direct_url bypasses the pooler")
    finally:
        await direct.aclose()


async def _is_pooled(connection: Connection) -> bool:
    return bool(connection.get_server_pid() != await connection.fetchval("SELECT pg_backend_pid()"))


async def _shares(url: str, seconds: float) -> bool:
    """Return whether one backend process serves two clients that send queries in turn, as behind a pooler in
    transaction mode."""
    clients: list[Connection] = []
    try:
        async with asyncio.timeout(seconds):
            clients.append(await connect(url, seconds))
            clients.append(await connect(url, seconds))
            for _ in range(_TURNS):
                one, other = [await client.fetchval("SELECT pg_backend_pid()") for client in clients]
                if one == other:
                    return True
    except Exception:
        # A pooler in session mode reserves a server connection per client, so the second client may get none.
        return False
    finally:
        for client in clients:
            client.terminate()
    return False


async def _vector(database: Database, *, needed: bool) -> StateFinding:
    try:
        await VectorTable(database).check()
    except StoreError as error:
        return (
            StateFinding("problem", str(error))
            if needed
            else StateFinding("ok", "embeddings are not configured, so vector stores search by words")
        )
    return StateFinding("ok", "the extension 'vector' can be used")


async def _tables(database: Database) -> AsyncIterator[StateFinding]:
    owners = [str(row[0]) for row in await database.fetch(_FOREIGN)]
    if owners:
        yield StateFinding(
            "note",
            f"tables belong to {', '.join(owners)}, not to the role of state.url",
            "run 'antiphon migrate up' as the owner of the tables, and set state.migrate: check here",
        )
    try:
        (row,) = await database.fetch(_OLDEST)
    except StoreError:
        return
    if row[0] > _OLD_TRANSACTION:
        yield StateFinding(
            "note",
            f"a transaction has been open for {row[0] // 60} minutes",
            "end the transaction, because PostgreSQL cannot vacuum rows that were deleted after its start; to prevent "
            "such transactions, set idle_in_transaction_session_timeout",
        )


async def _indexes(database: Database) -> AsyncIterator[StateFinding]:
    """Yield the findings of `antiphon doctor` about the indexes that the applied migrations create. Yields no finding
    if a newer build has applied migrations, because those migrations may have dropped indexes."""
    steps = {SCHEMA: packaged_steps(), VECTOR_SCHEMA: packaged_steps(VECTOR_STEPS)}
    wanted: dict[str, str] = {}
    for table, known in steps.items():
        applied = len(await applied_steps(database, table))
        if applied > len(known):
            return
        wanted |= indexes_of(known[:applied])
    if not wanted:
        return
    lost = await lost_indexes(database, list(wanted))
    for name, what in lost.items():
        drop = f"unless a process is creating the index now: DROP INDEX CONCURRENTLY {name}; "
        before = "" if what == "missing" else drop
        said = f"the index {name} is {what}, so queries that need it are slow"
        yield StateFinding("note", said, before + wanted[name])
    if not lost:
        yield StateFinding("ok", f"all {len(wanted)} indexes of the schema exist")


def indexes_of(steps: Sequence[SchemaStep]) -> dict[str, str]:
    """Return the indexes that exist after these migrations, by name, each with the statement that recreates the index.
    Indexes of primary keys and unique constraints have PostgreSQL's default names."""
    made: dict[str, str] = {}
    for step in steps:
        sql = _COMMENT.sub("", step.sql)
        for gone in _DROP.findall(sql):
            made.pop(gone, None)
        for table, body in _TABLE.findall(sql):
            again = f"create the constraint of {table} again, as in {step.name}"
            made.update((name, again) for name in _rules(table, body))
        for create, name, rest in _INDEX.findall(sql):
            made[name] = f"{create}CONCURRENTLY {name} {' '.join(rest.split())}"
    return made


async def lost_indexes(database: Database, names: Sequence[str]) -> dict[str, str]:
    """Return the indexes that are `missing` or `invalid`, by name. An index is invalid if its creation did not finish.
    Raises `StoreError`."""
    rows = await database.fetch(_LOST, list(names))
    return {str(row["name"]): "missing" if row["valid"] is None else "invalid" for row in rows}


def _rules(table: str, body: str) -> Iterator[str]:
    if "PRIMARY KEY" in body:
        yield f"{table}_pkey"
    for column in _UNIQUE_COLUMN.findall(body):
        yield f"{table}_{column}_key"
    for columns in _UNIQUE_COLUMNS.findall(body):
        yield f"{table}_{'_'.join(one.strip() for one in columns.split(','))}_key"
