"""The `Tables` of a SQLite database: its writer and its readers behind the words that all backends share.

Lives here: what those words are in SQLite. Not here: the words (`../tables.py`), threads and transactions (`writer.py`,
`readers.py`), keys (`idempotency.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from antiphon.engine.ports.actions import OnceOnly
from antiphon.stores.sqlite.idempotency import SqliteIdempotency
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Parameters, Statement

_WORDS = (
    (re.compile(r"\bIN \(:([a-z_]+)\.\.\.\)"), r"IN (SELECT value FROM json_each(:\1))"),
    (re.compile(r"\blease_in\(:([a-z_]+)\)"), r"(lease_now() + :\1)"),
    (re.compile(r"\bplace_columns\(\)"), "next_pos"),
    (re.compile(r"\bnew_places\(\)"), "place"),
    (re.compile(r"\bnew_place\(\)"), "now_ms() * 1000"),
    (re.compile(r"\bnow_ms\(\)"), ":now_ms"),
    (re.compile(r"\bgreatest\("), "max("),
    (re.compile(r"\bleast\("), "min("),
    (re.compile(r"(\bORDER BY [a-z_, ]+ )?\bFOR UPDATE\b"), ""),
)


@lru_cache(maxsize=1024)
def sqlite_sql(sql: str) -> str:
    """A statement of a shared store in SQLite's words."""
    for word, meaning in _WORDS:
        sql = word.sub(meaning, sql)
    return sql


class SqliteTables:
    """`Tables` on a writer and readers that the caller closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, keys: SqliteIdempotency) -> None:
        self._writer = writer
        self._readers = readers
        self._keys = keys

    async def fetch(self, sql: str, named: Mapping[str, Any]) -> list[Row]:
        """See `Tables.fetch`."""
        return await self._readers.fetch(sqlite_sql(sql), _bound(named))

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> None:
        """See `Tables.run`."""
        await self._writer.run(_steps(unit), undo=_steps(undo))

    async def make(
        self, once: OnceOnly | None, object_id: str, unit: Sequence[Statement], undo: Sequence[Statement]
    ) -> None:
        """See `Tables.make`."""
        await self._keys.make(once, object_id, _steps(unit), _steps(undo))


def _steps(unit: Sequence[Statement]) -> list[Statement]:
    return [
        Statement(sqlite_sql(step.sql), _given(step.parameters), many=step.many, rows=step.rows, into=step.into)
        for step in unit
    ]


def _given(parameters: Parameters) -> Parameters:
    return _bound(parameters) if isinstance(parameters, Mapping) else [_bound(each) for each in parameters]


def _bound(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in named.items()}
