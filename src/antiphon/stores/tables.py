"""The interface to one database through which the shared stores run their SQL.

Lives here: statements and units, the port that a backend implements to run them, and the words of SQL that every
backend understands. Not here: how a unit is run (`sqlite/tables.py`, `postgres/tables.py`), the SQL of any store.

A store that is written once (`prompts.py`, `conversations.py`) says its SQL once as well, in what SQLite and PostgreSQL
have in common, with parameters by name (`:owner`). Where they differ it uses these words, which each backend replaces:

- `IN (:ids...)`: one of a list of texts,
- `now_ms()`: the date in milliseconds since the epoch, by the clock of the database; where that has none, the
  parameter `:now_ms`,
- `date_now()`, and `date_in(:keep)` so many milliseconds later, and `for_ever()`: the same clock, as columns have it
  that no client sees,
- `taken()`: a lease that cannot be renewed,
- `lease_now()`, and `lease_in(:lease)` so many milliseconds later: the clock of leases, which cannot be set,
- `greatest(a, b)` and `least(a, b)`,
- `rowid`: which number a row got when it came,
- `place_columns()`, `new_places()` and `new_place()`: where the items of a new conversation begin, and
  `first_place(c)`: where those of `c` began,
- `FOR UPDATE` and `FOR NO KEY UPDATE`, with `ORDER BY` before it or `SKIP LOCKED` behind: PostgreSQL holds the rows
  until the transaction ends, taken in this order; SQLite has one writer at a time anyway.

A parameter that only stands where its type does not show (`:after IS NULL`) is cast: `CAST(:after AS text)`.

Invariant: the steps of a unit happen all or not at all.
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
"""For each step of a unit, how many rows it changed; of one that runs many times perhaps none."""


class Statement(Struct, frozen=True):
    """One statement of a unit. `many` runs it once per element of `parameters`, which is a list then.

    `rows`: how many rows it must change (of a statement that runs once); any other number undoes the unit with
    `RowsMissing`. `into`: what it returns (a SELECT, or RETURNING) is put there, and counts instead of what it changed;
    look at it once the unit succeeded, since a transaction may be run more than once.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None
    into: list[Any] | None = None


class RowsMissing(StoreError):
    """A step did not find the rows it must change, or add to; the unit was undone."""


class Tables(Protocol):
    """Reads and writes of one database. Every method raises `StoreError`."""

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> Sequence[Row]:
        """All rows of one query, which reads only. `own`: it is the process's own, and short; it never queues behind
        what clients read."""

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """Run a unit that changes something; returns once it is durable. Raises `RowsMissing`.

        `undo`: what takes the unit back where it took effect after its caller was told that nobody knows whether it
        would. `again`: run twice it does what it does once.
        """


async def changed(tables: Tables, statement: Statement, *beside: Statement) -> bool:
    """Run the statement, which must change one row, and what goes with it; whether it did."""
    try:
        await tables.run([statement, *beside])
    except RowsMissing:
        return False
    return True


async def renewed(tables: Tables, sql: str, holders: Sequence[str], seconds: float) -> frozenset[str]:
    """Prolong the leases of these holders by a statement that returns whose were held still."""
    rows: list[Row] = []
    await tables.run(
        [Statement(sql, {"holders": list(holders), "lease": milliseconds(seconds)}, into=rows)], again=True
    )
    return frozenset([row[0] for row in rows])


def within(order: str, most: str = ":bytes") -> str:
    """The table `cut (place, fits)` of a query that has the table `page (place, size, …)` and a parameter `most`.

    `fits` holds for the rows, taken in this order, that are within so many bytes together; for the first in any case.
    Both databases know a body's length without reading it, so what does not fit is never read.
    """
    return f"""cut (place, fits) AS (
  SELECT place, total <= {most} OR total = size
  FROM (SELECT place, size, sum(size) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM page) AS summed
)"""


def both_ways(sql: str) -> tuple[str, str]:
    """A list's query forwards and backwards: `{order}` in it is the direction, `{after}` the sign that leads on."""
    return sql.format(order="ASC", after=">"), sql.format(order="DESC", after="<")


def page_parameters(page: PageQuery, size: int = 0) -> dict[str, object]:
    """The parameters of a query that lies between two cursors: `:low`, `:high`, `:limit`, `:bytes` (of `size`)."""
    low, high = page.bounds
    return {"low": low, "high": high, "limit": page.limit + 1, "bytes": size}


def milliseconds(seconds: float) -> int:
    """A time, or a duration, as the databases have it."""
    return round(seconds * 1000)
