"""Defines the interface to one database through which the shared stores run their SQL.

Lives here: statements and transactions ("units"), the port that each backend implements to run them, and the SQL words
that every backend understands. Not here: how a backend runs a unit (`sqlite/tables.py`, `postgres/tables.py`), the SQL
of any store.

A shared store (`prompts.py`, `conversations.py`) has its SQL once, in the dialect that SQLite and PostgreSQL share,
with named parameters (`:owner`). Where they differ, the SQL uses these words, which each backend replaces:

- `IN (:ids...)`: one of a list of texts,
- `now_ms()`: the date in milliseconds since the epoch, by the database's clock; where it has none, the parameter
  `:now_ms`,
- `date_now()`, `date_in(:keep)` (so many milliseconds later) and `for_ever()`: the same clock, in columns that no
  client sees,
- `taken()`: a lease that cannot be renewed,
- `lease_now()` and `lease_in(:lease)` (so many milliseconds later): the lease clock, which an operator cannot set,
- `greatest(a, b)` and `least(a, b)`,
- `rowid`: the number of a row in the order of insertion,
- `place_columns()`, `new_places()` and `new_place()`: the first position for items of a new conversation, and
  `first_place(c)`: that of the conversation `c`,
- `FOR UPDATE` and `FOR NO KEY UPDATE`, after `ORDER BY` or before `SKIP LOCKED`: PostgreSQL locks the rows in this
  order until the transaction ends; SQLite has one writer at a time anyway.

A parameter whose type its position does not show (`:after IS NULL`) needs a cast: `CAST(:after AS text)`.

Invariant: the steps of a unit all take effect, or none does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from antiphon.engine.ports.state import PageQuery
from antiphon.errors import StoreError
from antiphon.stores.pages import Row

Parameters = Mapping[str, Any] | Sequence[Any]
Counts = tuple[int, ...]
"""The number of rows that each step of a unit changed; a step with `many` may report 0."""


class Statement(Struct, frozen=True):
    """One statement of a unit. `many` runs it once per element of `parameters`, which is a list then.

    `rows`: the number of rows that it must change (without `many`); any other number rolls the unit back with
    `RowsMissing`. `into`: a list that receives the returned rows (SELECT or RETURNING), which count instead of changed
    rows. Read it only after the unit succeeded, because a transaction may run more than once.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None
    into: list[Any] | None = None


class RowsMissing(StoreError):
    """A step did not find the rows that it must change; the unit was rolled back."""


class Tables(Protocol):
    """Reads and writes of one database. Every method raises `StoreError`.

    Example: `await tables.run([Statement(SQL, {"owner": "alice"}, rows=1)])` changes one row or raises
    `RowsMissing`."""

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> Sequence[Row]:
        """All rows of one read-only query. `own`: a short query of the process itself, which never queues behind the
        reads of clients."""

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """Run a unit in one transaction; returns when it is durable. Raises `RowsMissing`.

        `undo`: statements that revert the unit if its commit succeeds after the caller got an error with an unknown
        outcome. `again`: the unit is idempotent, so the backend may run it twice.
        """


async def changed(tables: Tables, statement: Statement, *beside: Statement) -> bool:
    """Run the statement, which must change one row, and the statements that belong to it. Returns whether it changed
    one."""
    try:
        await tables.run([statement, *beside])
    except RowsMissing:
        return False
    return True


async def renewed(tables: Tables, sql: str, holders: Sequence[str], seconds: float) -> frozenset[str]:
    """Extend the leases of these holders to `seconds` from now. `sql` returns the holders that still had a lease."""
    rows: list[Row] = []
    await tables.run(
        [Statement(sql, {"holders": list(holders), "lease": milliseconds(seconds)}, into=rows)], again=True
    )
    return frozenset([row[0] for row in rows])


def within(order: str, most: str = ":bytes") -> str:
    """The table `cut (place, fits)` of a query that has the table `page (place, size, …)` and a parameter `most`.

    `fits` is true for the first row, and for rows with a running total (in this order) of at most `most` bytes. Both
    databases know a body's length without reading it, so they never read a body that does not fit.
    """
    return f"""cut (place, fits) AS (
  SELECT place, total <= {most} OR total = size
  FROM (SELECT place, size, sum(size) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM page) AS summed
)"""


def both_ways(sql: str) -> tuple[str, str]:
    """A list's query in both directions: `{order}` is the direction, `{after}` the matching comparison."""
    return sql.format(order="ASC", after=">"), sql.format(order="DESC", after="<")


def page_parameters(page: PageQuery, size: int = 0) -> dict[str, object]:
    """The parameters of a query between two cursors: `:low`, `:high`, `:limit`, `:bytes` (of `size`)."""
    low, high = page.bounds
    return {"low": low, "high": high, "limit": page.limit + 1, "bytes": size}


def milliseconds(seconds: float) -> int:
    """A time or a duration in milliseconds, as the databases store it."""
    return round(seconds * 1000)
