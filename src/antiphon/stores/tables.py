"""Defines the interface to one database through which the shared stores run their SQL.

Lives here: statements and transactions ("units"), the port that each backend implements to run them, and the SQL macros
that every backend expands. Not here: how a backend runs a unit (`sqlite/tables.py`, `postgres/tables.py`), the SQL of
the stores.

A shared store (`prompts.py`, `conversations.py`) has one set of SQL statements, in the dialect that SQLite and
PostgreSQL share, with named parameters (`:owner`). Where the two dialects differ, the SQL uses these macros, which each
backend replaces:

- `IN (:ids...)`: the column's value is in a list of texts.
- `now_ms()`: the current time in milliseconds since the epoch, by the database's clock. The SQLite backend uses the
  parameter `:now_ms` instead of `now_ms()`.
- `date_now()`: the current time of the same clock, in the type of columns that no client sees. `date_in(:keep)` is the
  time `:keep` milliseconds after `date_now()`, and `for_ever()` is later than any time.
- `taken()`: the value of a lease that no process can renew.
- `lease_now()`: the current time of the lease clock, which an operator cannot set. `lease_in(:lease)` is the time
  `:lease` milliseconds after `lease_now()`.
- `greatest(a, b)` and `least(a, b)`: as in PostgreSQL.
- `rowid`: the number of a row, which increases in the order of insertion.
- `place_columns()`, `new_places()` and `new_place()`: the columns and values for the first item position of a new
  conversation. `first_place(c)` is the first item position of the conversation `c`.
- `FOR UPDATE` and `FOR NO KEY UPDATE`, after `ORDER BY` or before `SKIP LOCKED`: PostgreSQL locks the rows in the given
  order until the transaction ends. The SQLite backend removes these words, because SQLite has one writer at a time.

PostgreSQL cannot infer the type of a parameter in an expression like `:after IS NULL`, so the SQL must cast it:
`CAST(:after AS text)`.

Invariant: either all statements of a unit take effect, or none does.
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
"""The number of rows that each statement of a unit changed. A statement with `many` may report 0."""


class Statement(Struct, frozen=True):
    """One SQL statement of a transaction ("unit"). With `many`, `parameters` is a list, and the statement runs once per
    element.

    `rows`: the number of rows that a statement without `many` must change. Any other number rolls the unit back and
    raises `RowsMissing`. `into`: a list that receives the rows of a SELECT or a RETURNING clause. With `into`, `rows`
    is the required number of returned rows. Read `into` only after the unit succeeded, because a transaction may run
    more than once.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None
    into: list[Any] | None = None


class RowsMissing(StoreError):
    """A statement changed another number of rows than its `rows` requires, so the backend rolled the unit back."""


class Tables(Protocol):
    """Reads from and writes to one database. Every method raises `StoreError`.

    Example: `await tables.run([Statement(SQL, {"owner": "alice"}, rows=1)])` changes one row or raises
    `RowsMissing`."""

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> Sequence[Row]:
        """Return all rows of one read-only query. `own`: the query is short and polls for this process, so it never
        queues behind reads for clients."""

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """Run a unit in one transaction. Returns the counts of rows when the transaction is durable. Raises
        `RowsMissing`.

        `undo`: statements that revert the unit. The backend runs them if the commit succeeds after the caller already
        got an error with an unknown outcome. `again`: the unit is idempotent, so the backend may run it twice.
        """


async def changed(tables: Tables, statement: Statement, *beside: Statement) -> bool:
    """Run the statements in one transaction. Returns False, after a rollback, if a statement changed another number of
    rows than its `rows` requires."""
    try:
        await tables.run([statement, *beside])
    except RowsMissing:
        return False
    return True


async def renewed(tables: Tables, sql: str, holders: Sequence[str], seconds: float) -> frozenset[str]:
    """Extend the leases of these holders to `seconds` from now. Returns the holders that still had a lease, as `sql`
    returns them."""
    rows: list[Row] = []
    await tables.run(
        [Statement(sql, {"holders": list(holders), "lease": milliseconds(seconds)}, into=rows)], again=True
    )
    return frozenset([row[0] for row in rows])


def within(order: str, most: str = ":bytes") -> str:
    """Return the SQL of a common table expression `cut (place, fits)`, which limits a page by bytes. The query must
    define the common table expression `page (place, size, …)` before it.

    `fits` is true for the first row, and for rows whose running total of `size`, in the order `order`, is at most
    `most` bytes. Both databases know a body's length without reading the body. So the query never reads a body that
    does not fit.
    """
    return f"""cut (place, fits) AS (
  SELECT place, total <= {most} OR total = size
  FROM (SELECT place, size, sum(size) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM page) AS summed
)"""


def both_ways(sql: str) -> tuple[str, str]:
    """Return a list's query in ascending and in descending order. `{order}` in the SQL becomes the direction, and
    `{after}` the matching comparison operator."""
    return sql.format(order="ASC", after=">"), sql.format(order="DESC", after="<")


def page_parameters(page: PageQuery, size: int = 0) -> dict[str, object]:
    """Return the parameters `:low`, `:high`, `:limit` and `:bytes` of a query for the rows between two cursors. `size`:
    the maximum bytes of the page."""
    low, high = page.bounds
    return {"low": low, "high": high, "limit": page.limit + 1, "bytes": size}


def milliseconds(seconds: float) -> int:
    """Convert a time or a duration in seconds to the whole milliseconds that the databases store."""
    return round(seconds * 1000)
