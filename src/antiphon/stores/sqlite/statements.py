"""What the writer runs: the statements of a unit.

Lives here: what a statement may ask for, and how it is run. Not here: transactions, threads (`writer.py`), SQL of any
store.

Invariant: a statement can be run again after its transaction was rolled back, and then all that it tells is told anew.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from msgspec import Struct

from antiphon.errors import StoreError

Parameters = Mapping[str, Any] | Sequence[Any]
Counts = tuple[int, ...]
"""For each statement of a unit, how many rows it changed."""

_NAME = re.compile(r":([a-z_]+)")


def numbered(sql: str) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """A statement with several parameters that have names, with numbers instead, and what makes its parameters of
    values by name."""
    names = list(dict.fromkeys(_NAME.findall(sql)))
    return _NAME.sub(lambda found: f"?{names.index(found[1]) + 1}", sql), itemgetter(*names)


class Statement(Struct, frozen=True):
    """One statement of a unit. `many` runs it once per element of `parameters`.

    `rows`: how many rows it must change; any other number undoes the unit with `RowsMissing`. `into`: what it returns
    (a SELECT, or RETURNING) is put there, and counts instead of what it changed; look at it once the unit succeeded,
    since a transaction may be run more than once.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None
    into: list[Any] | None = None


class RowsMissing(StoreError):
    """A statement did not find the rows it must change; the unit was undone."""


def run_statements(connection: sqlite3.Connection, statements: Sequence[Statement]) -> Counts:
    """Run them in their order. Raises `RowsMissing` and `sqlite3.Error`; the caller's transaction undoes them then."""
    return tuple([_run(connection, statement) for statement in statements])


def adds(statement: Statement) -> bool:
    """Whether it takes room."""
    return statement.sql.lstrip()[:6].upper() == "INSERT" and bool(statement.parameters)


def _run(connection: sqlite3.Connection, statement: Statement) -> int:
    if statement.into is not None:
        statement.into[:] = connection.execute(statement.sql, statement.parameters).fetchall()
        changed = len(statement.into)
    elif statement.many:
        changed = connection.executemany(statement.sql, statement.parameters).rowcount if statement.parameters else 0
    else:
        changed = connection.execute(statement.sql, statement.parameters).rowcount
    if statement.rows is not None and changed != statement.rows:
        raise RowsMissing("A row that must be there is missing.")
    return changed
