"""Builds pages of a list, limited by rows and by bytes, whichever limit comes first.

Lives here: the cursors of a page, the conversion of rows (the same in every backend), and the lookup of items that a
request names. Not here: SQL.

A row that does not fit has no body, because the query did not read it. The first row always fits: if it is larger than
a page, it is the only one.

Invariant: a page is a prefix of the page without the limit of bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import HistoryTooLarge, unknown_cursor
from antiphon.stores.bodies import Bodies


class Row(Protocol):
    """A row of any backend: access to its columns by name or number."""

    def __getitem__(self, column: str | int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


R = TypeVar("R", bound=Row)


def cut_off(rows: Sequence[R], body: str = "body") -> tuple[Sequence[R], bool]:
    """The rows before the first one that does not fit (its column `body` is null), and whether there is such a row."""
    for number, row in enumerate(rows):
        if row[body] is None:
            return rows[:number], True
    return rows, False


async def check_cursors(page: PageQuery, find: Callable[[str], Awaitable[object]], missing: str) -> None:
    """Raise `InvalidRequest` with the message `missing` when a cursor is not in the list: `find` returns None for
    it."""
    for name, cursor in page.cursors:
        if await find(cursor) is None:
            raise unknown_cursor(name, missing)


def item_page(rows: Sequence[Row], page: PageQuery, bodies: Bodies) -> Page[StoredItem] | None:
    """A page from rows that have the positions of the cursors (`low`, `high`) and an item; the item is null on an empty
    page.

    Returns None without rows: the list does not exist. Raises `InvalidRequest` for a cursor without a position.
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
    """A page from rows that have a response (`id`, `status`, `response`) and one of its items, if any."""
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
    """The item in a row with the columns `item_id`, `type` and `body`."""
    return StoredItem(row["item_id"], row["type"], row["body"])


def history_item(row: Row) -> StoredItem:
    """The same for a row of a history, which also has the column `shown`."""
    return StoredItem(row["item_id"], row["type"], row["body"], row["shown"])


def named_items(item_ids: Sequence[str], rows: Sequence[Row], limit: int) -> dict[str, StoredItem]:
    """The found items by id. Raises `HistoryTooLarge` when the items exceed `limit` bytes, counted once per mention;
    the rows may have no bodies then."""
    if rows and rows[0]["body"] is None:
        raise HistoryTooLarge(limit, "input")
    found = {row["item_id"]: history_item(row) for row in rows}
    if sum(found[item_id].size for item_id in item_ids if item_id in found) > limit:
        raise HistoryTooLarge(limit, "input")
    return found
