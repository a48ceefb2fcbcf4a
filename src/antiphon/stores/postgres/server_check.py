"""Whether a server is one that Antiphon can keep its state on.

Lives here: the questions at a start, how long a start waits for their answers, and what to do about each. Not here:
what else an operator may want to know (`checks.py`), connections and that they take writes (`connecting.py`), the
schema (`migrate.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.failures import may_heal

_log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 1.0
_LINE_SECONDS = 5.0
OLDEST = 150_000
_ASK = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS shown,
       current_schema() AS schema, current_setting('server_encoding') AS encoding
"""


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
