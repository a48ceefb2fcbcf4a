"""Builds one page of a list from rows. A page has limits for the number of rows and for their bytes.

Lives here: the cursors of a page, the conversion of rows (the same in every backend), and the lookup of items that a
request names. Not here: SQL.

The query returns a row beyond the limit of bytes without its body. The first row always fits. If the first row is
larger than a page, the page has only this row.

Invariant: the limit of bytes only shortens a page at its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import HistoryTooLarge, unknown_cursor
from antiphon.stores.bodies import Bodies


class Row(Protocol):
    """A row of any backend. The index of a column is its name or its number."""

    def __getitem__(self, column: str | int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


R = TypeVar("R", bound=Row)


def cut_off(rows: Sequence[R], body: str = "body") -> tuple[Sequence[R], bool]:
    """Return the rows before the first row that exceeds the limit of bytes, and whether such a row exists. In that row,
    the column named by `body` is null."""
    for number, row in enumerate(rows):
        if row[body] is None:
            return rows[:number], True
    return rows, False


async def check_cursors(page: PageQuery, find: Callable[[str], Awaitable[object]], missing: str) -> None:
    """Raise `InvalidRequest` with the message `missing` when a cursor of the page is not in the list. `find` returns
    None for an id that is not in the list."""
    for name, cursor in page.cursors:
        if await find(cursor) is None:
            raise unknown_cursor(name, missing)


def item_page(rows: Sequence[Row], page: PageQuery, bodies: Bodies) -> Page[StoredItem] | None:
    """Build a page of items. Each row has the positions of the two cursors (`low`, `high`) and an item. The item is
    null on an empty page.

    Returns None if there are no rows, because then the list does not exist. Raises `InvalidRequest` for a cursor
    without a position.
    """
    if not rows:
        return None
    low, high = page.bounds
    places = {low: rows[0]["low"], high: rows[0]["high"]}
    for name, cursor in page.cursors:
        if places[cursor] is None:
            raise unknown_cursor(name, "There is no item with this id in the list")
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
    """Convert a row of a history to an item. The row has the column `shown` in addition to the columns that
    `stored_item` reads."""
    return StoredItem(row["item_id"], row["type"], row["body"], row["shown"])


def named_items(item_ids: Sequence[str], rows: Sequence[Row], limit: int) -> dict[str, StoredItem]:
    """Return the items of these rows by id. Raises `HistoryTooLarge` when the items exceed `limit` bytes. An item
    counts once per mention in `item_ids`. Rows beyond the limit may have no bodies."""
    if rows and rows[0]["body"] is None:
        raise HistoryTooLarge(limit, "input")
    found = {row["item_id"]: history_item(row) for row in rows}
    if sum(found[item_id].size for item_id in item_ids if item_id in found) > limit:
        raise HistoryTooLarge(limit, "input")
    return found
