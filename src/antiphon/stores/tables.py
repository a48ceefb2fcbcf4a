"""Defines the database interface with which the shared stores run their SQL, and builds pages of lists.

Lives here: SQL statements and transactions ("units"), the interface that each backend implements to run them, and the
SQL macros that every backend expands. This module also converts rows to items. Not here: how a backend runs a
transaction (`sqlite/tables.py`, `postgres/tables.py`), the SQL of the stores.

A shared store (`prompts.py`, `conversations.py`) has one set of SQL statements, in the dialect that SQLite and
PostgreSQL share, with named parameters (`:owner`). Where the two dialects differ, the SQL uses these macros, which each
backend replaces:

- `IN (:ids...)`: the column's value is in a list of texts.
- `now_ms()`: the current time in milliseconds since the epoch, by the database's clock. The SQLite backend uses the
  parameter `:now_ms` instead of `now_ms()`.
- `date_now()`: the current time of the same clock, in the type of columns that no client sees. `date_in(:keep)` is the
  time `:keep` milliseconds after `date_now()`, and `for_ever()` is later than any time.
- `taken()`: the value of a lease column that means that no process can renew the lease.
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

A page of a list has limits for the number of rows and for their bytes. If a row exceeds the page's limit of bytes, the
query returns the row without its body. A page always has at least one row. If the first row is larger than the limit,
the page has only this row.

Invariants: either all statements of a transaction take effect, or none does. The limit of bytes only removes rows at
the end of a page.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

from msgspec import Struct

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import HistoryTooLarge, StoreError, unknown_cursor
from antiphon.redaction import without_client_keys
from antiphon.stores.bodies import Bodies


class Row(Protocol):
    """A row of a query's result, in SQLite or PostgreSQL. The index of a column is its name or its number."""

    def __getitem__(self, column: str | int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


PARAMETER: Final = re.compile(r"(?<!:):([a-z][a-z0-9_]*)")
"""Matches a named parameter in the SQL of the shared stores, such as `:owner`."""
Parameters = Mapping[str, Any] | Sequence[Any]
Counts = tuple[int, ...]
"""The number of rows that each statement of a transaction changed. A statement with `many` may report 0."""


class Statement(Struct, frozen=True):
    """One SQL statement of a transaction ("unit"), with named parameters.

    With `many`, `parameters` is a list, and the statement runs once per element. `light`: the elements of an INSERT are
    small and have no lists, so the backend may insert several of them at once (`sqlite/units.py`).

    `rows`: the number of rows that a statement without `many` must change. If the statement changes another number of
    rows, the backend rolls the transaction back and raises `RowsMissing`. `into`: a list that receives the rows of a
    SELECT or a RETURNING clause. With `into`, `rows` is the required number of returned rows. Read `into` only after
    the transaction succeeded, because the backend may run the transaction more than once.
    """

    sql: str
    parameters: Parameters = ()
    many: bool = False
    rows: int | None = None
    into: list[Any] | None = None
    light: bool = False


class RowsMissing(StoreError):
    """A statement changed another number of rows than its `rows` requires, so the backend rolled the transaction
    back."""


class Tables(Protocol):
    """Reads from and writes to one database. Every method raises `StoreError` when the database fails.

    Example: `await tables.run([Statement(SQL, {"owner": "alice"}, rows=1)])` changes one row or raises
    `RowsMissing`."""

    async def fetch(self, sql: str, named: Mapping[str, object], *, own: bool = False) -> Sequence[Row]:
        """Return all rows of one read-only query. `own`: the query is short and polls for this process, so it never
        queues behind reads for clients."""

    def fetch_now(self, sql: str, named: Mapping[str, object]) -> Sequence[Row] | None:
        """Return all rows of one read-only query that reads few rows by their keys. The query has neither lists nor
        `lease_now()`. Returns None if the backend cannot answer without waiting. The caller then calls `fetch`, which
        also reports errors."""

    async def run(self, unit: Sequence[Statement], *, undo: Sequence[Statement] = (), again: bool = False) -> Counts:
        """Run the statements in `unit` in one transaction. Returns the number of changed rows of each statement when
        the transaction is durable. Raises `RowsMissing`.

        `undo`: statements that revert the transaction. The backend runs them if the commit succeeds after the caller
        already got an error with an unknown outcome. `again`: the transaction is idempotent, so the backend may run it
        twice.
        """


async def run_required(tables: Tables, statement: Statement, *beside: Statement) -> bool:
    """Run the statements in one transaction. Returns False, after a rollback, if a statement changed another number of
    rows than its `rows` requires."""
    try:
        await tables.run([statement, *beside])
    except RowsMissing:
        return False
    return True


async def renew_leases(tables: Tables, sql: str, holders: Sequence[str], seconds: float) -> frozenset[str]:
    """Extend the leases of these holders to `seconds` from now. `sql` is the statement that renews the leases and
    returns the holders that still had a lease. This function returns those holders."""
    rows: list[Row] = []
    await tables.run(
        [Statement(sql, {"holders": list(holders), "lease": milliseconds(seconds)}, into=rows)], again=True
    )
    return frozenset([row[0] for row in rows])


def byte_limit(order: str, most: str = ":bytes") -> str:
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


def both_orders(sql: str) -> tuple[str, str]:
    """Return two queries for a list: one in ascending and one in descending order. `page.backward` is the index of the
    query for a page.

    `{order}` in the SQL becomes the direction, and `{after}` the matching comparison operator (`>` or `<`).
    """
    return sql.format(order="ASC", after=">"), sql.format(order="DESC", after="<")


def page_parameters(page: PageQuery, size: int = 0) -> dict[str, object]:
    """Return the parameters `:low`, `:high`, `:limit` and `:bytes` of a query for the rows between two cursors. `size`:
    the maximum bytes of the page."""
    low, high = page.bounds
    return {"low": low, "high": high, "limit": page.limit + 1, "bytes": size}


def milliseconds(seconds: float) -> int:
    """Convert a time or a duration in seconds to the whole milliseconds that the databases store."""
    return round(seconds * 1000)


R = TypeVar("R", bound=Row)


def cut_off(rows: Sequence[R], body: str = "body") -> tuple[Sequence[R], bool]:
    """Return the rows before the first row that exceeds the page's limit of bytes, and whether such a row exists. In
    that row, the column named by `body` is null."""
    for number, row in enumerate(rows):
        if row[body] is None:
            return rows[:number], True
    return rows, False


async def check_cursors(page: PageQuery, find: Callable[[str], Awaitable[object]], missing: str) -> None:
    """Raise `InvalidRequest` with the message `missing` when a cursor of the page is not in the list.

    The error names the parameter (`after` or `before`). `find` returns None for an id that is not in the list.
    """
    for name, cursor in page.cursors:
        if await find(cursor) is None:
            raise unknown_cursor(name, without_client_keys(cursor), missing)


def item_page(rows: Sequence[Row], page: PageQuery, bodies: Bodies) -> Page[StoredItem] | None:
    """Build a page of items. Each row has the positions of the two cursors (`low`, `high`) and an item. The item is
    null on an empty page.

    Returns None if there are no rows, because then the list does not exist. Raises `InvalidRequest` when the item of a
    cursor is not in the list.
    """
    if not rows:
        return None
    low, high = page.bounds
    places = {low: rows[0]["low"], high: rows[0]["high"]}
    for name, cursor in page.cursors:
        if places[cursor] is None:
            raise unknown_cursor(name, cursor, "There is no item with this id in the list")
    found, cut = cut_off([row for row in rows if row["item_id"] is not None])
    shown = page.shown([stored_item(row) for row in found])
    return Page(bodies.open_items(shown), has_more=cut or len(found) > page.limit)


def response_page(rows: Sequence[Row], page: PageQuery, bodies: Bodies) -> Page[StoredResponse]:
    """Build a page of responses. Each row has a response (`id`, `status`, `response`) and one of its output items, or
    no item."""
    found: dict[str, tuple[Row, list[StoredItem]]] = {}
    kept, cut = cut_off(rows, "response")
    for row in kept:
        items = found.setdefault(row["id"], (row, []))[1]
        if row["item_id"] is not None:
            items.append(stored_item(row))
    shown = [
        StoredResponse(
            row["id"],
            row["status"],
            bodies.open_response(row["response"], row["status"]),
            bodies.open_items(tuple(items)),
        )
        for row, items in page.shown(list(found.values()))
    ]
    return Page(tuple(shown), has_more=cut or len(found) > page.limit)


def stored_item(row: Row) -> StoredItem:
    """Convert a row with the columns `item_id`, `type` and `body` to an item."""
    return StoredItem(row["item_id"], row["type"], row["body"])


def history_item(row: Row) -> StoredItem:
    """Convert a row of a history to an item. The row's columns 1 to 4 are `item_id`, `type`, `body` and `shown`. SQLite
    finds a column by its number twice as fast as by its name."""
    return StoredItem(row[1], row[2], row[3], row[4])


def named_items(item_ids: Sequence[str], rows: Sequence[Row], limit: int) -> dict[str, StoredItem]:
    """Return the items of these rows by id. Raises `HistoryTooLarge` when the items exceed `limit` bytes. An item that
    `item_ids` names several times counts several times. Rows beyond these `limit` bytes may have no bodies."""
    if rows and rows[0]["body"] is None:
        raise HistoryTooLarge(limit, "input")
    found = {row["item_id"]: StoredItem(row["item_id"], row["type"], row["body"], row["shown"]) for row in rows}
    if sum(found[item_id].size for item_id in item_ids if item_id in found) > limit:
        raise HistoryTooLarge(limit, "input")
    return found


async def count_by_owner(
    tables: Tables, table: Literal["conversations", "files", "prompts", "vector_stores"]
) -> dict[str, int]:
    """Return how many rows of the table each owner has. The result lacks owners without rows."""
    rows = await tables.fetch(f"SELECT owner, count(*) FROM {table} WHERE owner IS NOT NULL GROUP BY owner", {})
    return {row[0]: row[1] for row in rows}
