"""What it means to read, list and delete responses: the `ResponseStore` over PostgreSQL.

Lives here: how rows become records. Not here: the SQL (`response_sql.py`), storing a response (`turns.py`, in groups:
`turn_groups.py`).

Invariant: a response is deleted with its chain locked, so that whoever continues the chain at that moment either was
seen, or finds its predecessor gone.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports.state import ItemPage, PageQuery, ResponsePage, StoredResponse
from antiphon.engine.ports.stored_bodies import is_over, unfinished_response
from antiphon.errors import ChainBroken, ChainTooLong, HistoryTooLarge, StoreError, unknown_cursor
from antiphon.stores.pages import cut_off, history_item, item_page, named_items, stored_item
from antiphon.stores.postgres import response_sql as sql
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.deleting import delete_response
from antiphon.stores.postgres.readiness import DatabaseReadiness
from antiphon.stores.postgres.turn_groups import Groups
from antiphon.stores.postgres.turns import Turn
from antiphon.stores.postgres.values import body_now


class PostgresResponseStore:
    """`ResponseStore` on a database and groups of turns that are somebody else's to close."""

    def __init__(
        self,
        database: Database,
        turns: Groups[Turn],
        *,
        chain_items: int,
        history_bytes: int,
        page_bytes: int,
        patience: float,
    ) -> None:
        """`chain_items` and `history_bytes`: the most of a history that is read at all; `page_bytes`: where a page of a
        list ends before its rows do; `patience`: see `DatabaseReadiness`."""
        self._database = database
        self._turns = turns
        self._chain_items = chain_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._readiness = DatabaseReadiness(database, patience)

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing; see `ResponseStore.save`."""
        await self._turns.run(Turn(record))

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """The history that ends in `response_id`; raises `ChainTooLong`, `HistoryTooLarge` before any is read, and
        `ChainBroken`."""
        rows = await self._database.fetch(sql.LOAD_CHAIN, response_id, owner, self._chain_items, self._history_bytes)
        if not rows:
            return None
        oldest, newest = rows[0], rows[-1]
        if oldest["history_items"] > self._chain_items:
            raise ChainTooLong(self._chain_items)
        size = newest["history_bytes"]
        if size > self._history_bytes:
            raise HistoryTooLarge(self._history_bytes, "previous_response_id")
        if not is_over(newest["status"]):
            raise unfinished_response(response_id)
        if oldest["prev_id"] is not None:
            raise ChainBroken(response_id, oldest["prev_id"])
        items = [history_item(row) for row in rows if row["item_id"] is not None]
        if oldest["conversation_id"] is not None:
            place = oldest["conversation_id"], oldest["conversation_pos"]
            before = await self._before(owner, *place, len(items), size)
            if before is None:
                raise ChainBroken(response_id, oldest["conversation_id"])
            items[:0] = before
        return Chain(tuple(items))

    async def _before(
        self, owner: str, conversation_id: str, position: int | None, others: int, size: int
    ) -> list[StoredItem] | None:
        """What a chain's first response found in its conversation; None when that conversation was deleted."""
        limit = max(0, self._chain_items - others)
        room = self._history_bytes - size
        rows = await self._database.fetch(sql.LOAD_BEFORE, owner, conversation_id, position, room, limit + 1)
        if rows and rows[0]["size"] > room:
            raise HistoryTooLarge(self._history_bytes, "previous_response_id")
        items = [history_item(row) for row in rows if row["item_id"] is not None]
        if len(items) > limit:
            raise ChainTooLong(self._chain_items)
        return items if rows else None

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids; see `ResponseStore.load_items`."""
        if not item_ids:
            return {}
        rows = await self._database.fetch(sql.LOAD_ITEMS, owner, sorted(set(item_ids)), self._history_bytes)
        return named_items(item_ids, rows, self._history_bytes)

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""
        rows = await self._database.fetch(sql.GET_RESPONSE, response_id, owner)
        if not rows:
            return None
        _, stored_id, status, body = rows[0]
        items = tuple([stored_item(row) for row in rows[1:]])
        return StoredResponse(stored_id, status, body_now(status, body), items)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when there is none for this owner."""

        async def work(connection: Connection) -> bool:
            return await delete_response(connection, owner, response_id)

        try:
            return await self._database.transaction(work)
        except StoreError as error:
            if error.reason != "unknown":
                raise
            # It is there or it is not: once more makes that sure, and if it is gone by now it was deleted.
            await self._database.transaction(work)
            return True

    async def list(self, owner: str, page: PageQuery) -> ResponsePage:
        """A page of the owner's responses; `after` and `before` are meant in the asked order, one of them counts."""
        text = sql.LIST_BACKWARD if page.backward else sql.LIST_FORWARD
        place: list[str] = []
        for name, cursor in page.cursors[:1]:
            if not await self._database.fetch(sql.IS_RESPONSE, cursor, owner):
                raise unknown_cursor(name, "There is no response with this id")
            text = sql.LIST_BACKWARD_BEHIND if page.backward else sql.LIST_FORWARD_BEHIND
            place = [cursor]
        found: dict[str, tuple[Record, list[StoredItem]]] = {}
        fetched = await self._database.fetch(text, owner, page.limit + 1, self._page_bytes, *place)
        rows, cut = cut_off(fetched, "response")
        for row in rows:
            items = found.setdefault(row["id"], (row, []))[1]
            if row["item_id"] is not None:
                items.append(stored_item(row))
        responses = [
            StoredResponse(row["id"], row["status"], body_now(row["status"], row["response"]), tuple(items))
            for row, items in found.values()
        ]
        return ResponsePage(page.shown(responses), has_more=cut or len(responses) > page.limit)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the response's own input items, or None when there is no such response.

        `after` and `before` are meant in the asked order. With `before` alone the page is the one that ends just
        before that item. An id that is not in the list is an `InvalidRequest`.
        """
        text = sql.INPUT_ITEMS_BACKWARD if page.backward else sql.INPUT_ITEMS_FORWARD
        low, high = page.bounds
        rows = await self._database.fetch(text, response_id, owner, low, high, page.limit + 1, self._page_bytes)
        return item_page(rows, page)

    async def ping(self) -> None:
        """Raise `StoreError` when requests should go elsewhere; see `DatabaseReadiness`."""
        await self._readiness.ping()
