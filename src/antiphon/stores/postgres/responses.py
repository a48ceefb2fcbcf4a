"""What it means to read, list and delete responses: the `ResponseStore` over PostgreSQL.

Lives here: which rows are read. Not here: the SQL (`response_sql.py`), what a history comes to (`stores/chains.py`),
storing a response (`turns.py`, in groups: `turn_groups.py`).

Invariant: a response is deleted with its chain locked, so that whoever continues the chain at that moment either was
seen, or finds its predecessor gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import StoreError, unknown_cursor
from antiphon.stores.chains import load_chain
from antiphon.stores.pages import item_page, named_items, response_page, stored_item
from antiphon.stores.postgres import response_sql as sql
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.deleting import delete_response
from antiphon.stores.postgres.readiness import DatabaseReadiness
from antiphon.stores.postgres.turn_groups import Groups
from antiphon.stores.postgres.turns import Turn
from antiphon.stores.postgres.values import body_now


class PostgresResponseStore:
    """`ResponseStore` on a database and groups of turns that the caller closes."""

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
        """The history that ends in `response_id`; see `chains.load_chain`."""
        return await load_chain(self, owner, response_id, self._chain_items, self._history_bytes)

    async def chain(self, owner: str, response_id: str, limit: int, size: int) -> Sequence[Record]:
        """See `ChainRows.chain`."""
        return await self._database.fetch(sql.LOAD_CHAIN, response_id, owner, limit, size)

    async def before(
        self, owner: str, conversation_id: str, position: int | None, limit: int, size: int
    ) -> Sequence[Record]:
        """See `ChainRows.before`."""
        return await self._database.fetch(sql.LOAD_BEFORE, owner, conversation_id, position, size, limit)

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

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """A page of the owner's responses; `after` and `before` are meant in the asked order, one of them counts."""
        text = sql.LIST_BACKWARD if page.backward else sql.LIST_FORWARD
        place: list[str] = []
        for name, cursor in page.cursors[:1]:
            if not await self._database.fetch(sql.IS_RESPONSE, cursor, owner):
                raise unknown_cursor(name, "There is no response with this id")
            text = sql.LIST_BACKWARD_BEHIND if page.backward else sql.LIST_FORWARD_BEHIND
            place = [cursor]
        rows = await self._database.fetch(text, owner, page.limit + 1, self._page_bytes, *place)
        return response_page(rows, page, body_now)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
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
