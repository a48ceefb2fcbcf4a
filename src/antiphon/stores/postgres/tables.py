"""Implements `Tables` for PostgreSQL.

Lives here: the PostgreSQL form of the shared SQL macros, and running a list of statements ("unit") as one transaction.
Not here: the definition of the macros (`../tables.py`), connections (`database.py`).

Invariant: a transaction that is not idempotent either takes effect once, or has no effect and raises an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter

from antiphon.stores.postgres.database import Connection, Database, committed_once
from antiphon.stores.tables import PARAMETER, Counts, Row, RowsMissing, Statement

NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""SQL: the database's current time in milliseconds since the epoch, as time columns store it."""
# Each conversation gets 2^24 item positions.
_PLACES = 24
_WORDS = (
    (re.compile(r"\bIN \(:([a-z_]+)\.\.\.\)"), r"= ANY(CAST(:\1 AS text[]))"),
    (
        re.compile(r"\b(?:lease|date)_in\(:([a-z_]+)\)"),
        r"(clock_timestamp() + CAST(:\1 AS double precision) * interval '1 millisecond')",
    ),
    (re.compile(r"\b(lease|date)_now\(\)"), "clock_timestamp()"),
    (re.compile(r"\btaken\(\)"), "'-infinity'::timestamptz"),
    (re.compile(r"\bfor_ever\(\)"), "'infinity'::timestamptz"),
    (re.compile(r"\bnow_ms\(\)"), NOW),
    (re.compile(r"\browid\b"), "number"),
    (re.compile(r"\bplace_columns\(\)"), "first_pos, next_pos"),
    (re.compile(r"\bnew_places\(\)"), "place, place"),
    (re.compile(r"\bfirst_place\(([a-z]+)\)"), r"\1.first_pos"),
    (re.compile(r"\bnew_place\(\)"), f"nextval('conversation_places') << {_PLACES}"),
)


@lru_cache(maxsize=1024)
def postgres_sql(sql: str) -> tuple[str, Callable[[Mapping[str, object]], tuple[object, ...]]]:
    """Translate a shared store's statement to PostgreSQL. Returns the SQL with numbered parameters (`$1`, …), and a
    function that converts named parameters to a tuple in the order of these numbers."""
    for word, meaning in _WORDS:
        sql = word.sub(meaning, sql)
    names = list(dict.fromkeys(PARAMETER.findall(sql)))
    text = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", sql)
    if len(names) > 1:
        return text, itemgetter(*names)
    return text, lambda named: tuple(named[name] for name in names)


class PostgresTables:
    """Implements `Tables` on a connection pool that the caller closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> Sequence[Row]:
        """See `Tables.fetch`. This backend ignores `own`, because the server runs many reads concurrently."""
        text, order = postgres_sql(sql)
        return await self._database.fetch(text, *order(named))

    def fetch_now(self, sql: str, named: Mapping[str, object]) -> None:
        """See `Tables.fetch_now`. The server is another process, so this backend has no answer without waiting."""

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """See `Tables.run`. This backend ignores `undo`, because it asks the server for the outcome of a commit when
        the connection is lost."""

        async def work(connection: Connection) -> Counts:
            return await run_steps(connection, unit)

        if not again:
            return await committed_once(self._database, work)
        if len(unit) == 1:
            return await self._database.alone(work)
        return await self._database.transaction(work, again=True)


async def run_steps(connection: Connection, unit: Sequence[Statement]) -> Counts:
    """Run the statements in `unit` in order and return the number of changed rows of each statement. Raises
    `RowsMissing` when a statement changes another number of rows than it requires. The caller must then roll the
    transaction back."""
    counts: list[int] = []
    for step in unit:
        text, order = postgres_sql(step.sql)
        if not isinstance(step.parameters, Mapping):
            await connection.executemany(text, [order(each) for each in step.parameters])
            counts.append(0)
            continue
        given = order(step.parameters)
        if step.into is not None:
            step.into[:] = await connection.fetch(text, *given)
            changed = len(step.into)
        else:
            # The status of a SET statement contains no count.
            count = (await connection.execute(text, *given)).rpartition(" ")[2]
            changed = int(count) if count.isdigit() else 0
        if step.rows is not None and changed != step.rows:
            raise RowsMissing("A statement did not change the number of rows that it requires.")
        counts.append(changed)
    return tuple(counts)
