"""Reads and deletes responses and their items in SQLite or PostgreSQL.

Lives here: the SQL that reads and deletes responses, the size limits of a history, the errors for an incomplete
history, and pages. This module also lists the responses of a chain for the console. Not here: how a backend runs
statements (`tables.py`). Each backend stores a response and finds items by id itself (`sqlite/responses.py`,
`postgres/responses.py`).

A chain is a sequence of responses that `previous_response_id` links. All responses of a chain have the same owner,
because the insert of a response checks the owner of its predecessor. So the query that reads a chain checks only the
owner of the last response. Each response stores only its own items, so no item is stored twice.

A deletion of a response locks its chain. A concurrent response that continues the chain either commits before the
deletion checks the chain, or fails because its predecessor is deleted.

Invariant: a query checks the size of a history before it reads the items. The query reads no item of a history that
exceeds a size limit.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Protocol

from msgspec import Struct

from antiphon.engine.ports.actions import Chain, ComparedResponse, ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import is_over, unfinished_response
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.errors import ChainBroken, ChainTooLong, HistoryTooLarge
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.journal import FORGET_RESPONSE
from antiphon.stores.retention import SWEEPER
from antiphon.stores.tables import (
    Row,
    Statement,
    Tables,
    both_orders,
    byte_limit,
    check_cursors,
    history_item,
    item_page,
    named_items,
    page_parameters,
    response_page,
    stored_item,
)

# The common table expression `turn` has the responses of a chain, newest first. Only the first SELECT checks the owner.
# `CROSS JOIN` fixes the join order in SQLite. After ANALYZE, a second condition on `responses` in the recursive SELECT
# would make SQLite build a Bloom filter over the whole table on every call. For a chain over a limit, the query returns
# only the newest response, with the chain's size in `history_items` and `history_bytes`, and no items. `depth < :limit`
# ends the recursion in a damaged database with a circular chain. The rows have no order, because SQLite would copy all
# bodies to sort them. `place` gives the order of the items: by depth, `dir` and `seq`, which is below 2^31.
LOAD_CHAIN = """
WITH RECURSIVE turn (id, prev_id, depth, history_items, history_bytes, conversation_id, conversation_pos, status) AS (
  SELECT id, CASE WHEN history_items <= :limit AND history_bytes <= :bytes THEN prev_id END, 0, history_items,
         history_bytes, conversation_id, conversation_pos, status
  FROM responses WHERE id = :id AND owner = :owner
  UNION ALL
  SELECT r.id, r.prev_id, turn.depth + 1, r.history_items, r.history_bytes, r.conversation_id, r.conversation_pos,
         r.status
  FROM turn CROSS JOIN responses r
  WHERE turn.depth < :limit AND r.id = turn.prev_id
)
SELECT coalesce(i.dir, 0) * 2147483648 + coalesce(i.seq, 0) - turn.depth * 4294967296 AS place,
       i.item_id, i.type, i.body, i.shown, turn.history_items AS history_items, turn.history_bytes AS history_bytes,
       turn.status AS status, turn.prev_id AS prev_id, turn.conversation_id AS conversation_id,
       turn.conversation_pos AS conversation_pos
FROM turn LEFT JOIN response_items i ON i.response_id = turn.id
  AND turn.history_items <= :limit AND turn.history_bytes <= :bytes
"""
_IN_ORDER = itemgetter(0)
_BRIEF_ITEMS = 512
"""The maximum number of items of a history that the event loop's thread reads from a local database."""
_BRIEF_BYTES = 512 * 1024
"""The maximum bytes of such a history. SQLite reads so many items and bytes in about 2 ms."""
# Selects the items in the conversation before the first response of a chain. The query returns no row when the id now
# belongs to a newer conversation, or when a sweep is deleting the conversation and some items may be missing.
LOAD_BEFORE = f"""
WITH size (bytes) AS MATERIALIZED (
  SELECT coalesce(sum(length(body) + coalesce(length(shown), 0)), 0) FROM conversation_items
  WHERE owner = :owner AND conversation_id = :conversation_id AND pos < :pos
)
SELECT size.bytes AS size, i.item_id, i.type, i.body, i.shown FROM conversations c CROSS JOIN size
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos < :pos
  AND size.bytes <= :bytes
WHERE c.owner = :owner AND c.id = :conversation_id AND first_place(c) <= :pos
  AND coalesce(c.locked_by, '') <> '{SWEEPER}'
ORDER BY i.pos LIMIT :limit
"""
# One query reads the response (first row) and its output items, so that both come from one snapshot.
GET = """
SELECT -1 AS seq, id AS item_id, status AS type, body FROM responses WHERE id = :id AND owner = :owner
UNION ALL
SELECT i.seq, i.item_id, i.type, i.body
FROM responses r CROSS JOIN response_items i
WHERE r.id = :id AND r.owner = :owner AND i.response_id = r.id AND i.dir = 1
ORDER BY 1
"""
_MOST_IN_CHAIN = 500
"""The maximum number of responses that `ResponseStore.chain` returns."""
CHAIN = f"""
SELECT r.id, r.prev_id, r.status, r.model, r.created_at, r.input_tokens, r.output_tokens, r.history_items
FROM responses r
WHERE r.owner = :owner AND r.chain_id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner)
ORDER BY r.created_at DESC, r.rowid DESC LIMIT {_MOST_IN_CHAIN}
"""
IS_THERE = "SELECT 1 FROM responses WHERE id = :id AND owner = :owner"
# A page contains the items strictly between the cursors `:low` and `:high`. Either cursor may be absent. No row means
# that the response does not exist. A row without an item means that the page is empty.
INPUT_ITEMS = both_orders(f"""
WITH edge (low, high) AS (
  SELECT (SELECT min(seq) FROM response_items WHERE response_id = :id AND dir = 0 AND item_id = :low),
         (SELECT min(seq) FROM response_items WHERE response_id = :id AND dir = 0 AND item_id = :high)
),
page (place, size) AS (
  SELECT i.seq, length(i.body) FROM response_items i
  WHERE i.response_id = :id AND i.dir = 0
    AND i.seq > coalesce((SELECT low FROM edge), -1) AND i.seq < coalesce((SELECT high FROM edge), 2147483647)
  ORDER BY i.seq {{order}} LIMIT :limit
),
{byte_limit("place {order}")}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM responses r CROSS JOIN edge LEFT JOIN cut ON true
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 0 AND i.seq = cut.place
WHERE r.id = :id AND r.owner = :owner
ORDER BY cut.place {{order}}
""")
# A page contains the responses strictly between the cursors `:low` and `:high`. Either cursor may be absent. Of two
# responses with the same creation time, the response with the higher row number is newer. One query reads the responses
# and their output items, so that all come from one snapshot.
_AT = "coalesce((SELECT created_at FROM responses WHERE id = :{0} AND owner = :owner), {1})"
_NUMBER = "coalesce((SELECT rowid FROM responses WHERE id = :{0} AND owner = :owner), {1})"
_FIRST, _LAST = "-1", "9223372036854775807"
LIST = both_orders(f"""
WITH chosen AS MATERIALIZED (
  SELECT r.id AS id, r.created_at AS at, r.rowid AS number, length(r.body) AS size FROM responses r
  WHERE r.owner = :owner
    AND (r.created_at, r.rowid) > ({_AT.format("low", _FIRST)}, {_NUMBER.format("low", _FIRST)})
    AND (r.created_at, r.rowid) < ({_AT.format("high", _LAST)}, {_NUMBER.format("high", _LAST)})
  ORDER BY r.created_at {{order}}, r.rowid {{order}} LIMIT :limit
),
page (place, at, number, size) AS (
  SELECT c.id, c.at, c.number, c.size + coalesce(
    (SELECT sum(length(o.body)) FROM response_items o WHERE o.response_id = c.id AND o.dir = 1), 0)
  FROM chosen c
),
{byte_limit("at {order}, number {order}", "CAST(:bytes AS bigint)")}
SELECT r.id, r.status, CASE WHEN cut.fits THEN r.body END AS response, i.item_id, i.type, i.body
FROM cut CROSS JOIN responses r
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 1 AND cut.fits
WHERE r.id = cut.place
ORDER BY r.created_at {{order}}, r.rowid {{order}}, i.seq
""")

# A deletion locks the job first, as the job's worker does, and then the chain. While the deletion holds both locks, no
# other transaction can add a response to the chain. So the next statement sees all responses of the chain.
LOCK_JOB = "SELECT 1 FROM jobs WHERE response_id = :id AND owner = :owner FOR UPDATE"
LOCK_CHAIN = """
SELECT 1 FROM chains WHERE id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner) FOR UPDATE
"""
# The first statement deletes the chain if the response is its only response. Foreign keys then delete the response and
# its items. Otherwise the second statement deletes the response with its items. One of the two statements changes a row
# if the response existed.
DELETE_LAST_OF_CHAIN = """
DELETE FROM chains
WHERE id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner)
  AND NOT EXISTS (SELECT 1 FROM responses other WHERE other.chain_id = chains.id AND other.id <> :id)
"""
DELETE = "DELETE FROM responses WHERE id = :id AND owner = :owner"


class ChainedResponse(Struct, frozen=True):
    """One response of a chain. Times are in seconds since the epoch. `history_items` counts the items up to and
    including this response."""

    id: str
    previous_id: str
    status: str
    model: str
    created_at: float
    input_tokens: int
    output_tokens: int
    history_items: int


class ResponseWriter(Protocol):
    """Stores a response and checks the database's health. Each backend has its own implementation of this class. Every
    method raises `StoreError` when the database fails."""

    def save(self, record: ResponseRecord) -> Coroutine[object, object, None]:
        """See `History.save`."""

    async def ping(self) -> None:
        """See `ResponseStore.ping`."""


class ResponseStore:
    """Stores responses and their items in a database that the caller closes. A response is durable when `save` returns.

    This class implements `History` for the engine, and the reads and deletions of the API. Every method raises
    `StoreError` when the database fails. No method blocks the event loop, except for a few milliseconds that a local
    database takes for a short history (`sqlite/brief_reads.py`).
    """

    def __init__(
        self,
        tables: Tables,
        writer: ResponseWriter,
        find_items: str,
        *,
        chain_items: int,
        history_bytes: int,
        page_bytes: int,
        bodies: Bodies = PLAIN,
    ) -> None:
        """`find_items`: the backend's query that finds one item for each id in `:ids`. The query prefers output items
        to input items, and newer items to older items. The query reads no bodies when they exceed `:bytes` together.

        `chain_items` and `history_bytes` limit the items and the bytes of a history. `page_bytes`: the maximum bytes of
        a page of a list. `bodies` encrypts responses and items."""
        self._tables = tables
        self._writer = writer
        self._find_items = find_items
        self._chain_items = chain_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._bodies = bodies

    def save(self, record: ResponseRecord) -> Coroutine[object, object, None]:
        """Store a finished response with its items in one transaction. See `History.save`."""
        return self._writer.save(self._bodies.seal_record(record))

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """Return the history that ends with the response `response_id`, or None if the owner has no such response. See
        `History.load_chain`.

        Raises `ChainTooLong` (400) or `HistoryTooLarge` (413) for a history over a limit. Raises `ChainBroken` (400)
        for a history from which a response was deleted. Raises `unfinished_response` (400) for a response that has not
        ended.
        """
        most, size = self._chain_items, self._history_bytes
        named: dict[str, object] = {"id": response_id, "owner": owner, "limit": most, "bytes": size}
        found = self._brief_chain(named) or await self._tables.fetch(LOAD_CHAIN, named)
        if not found:
            return None
        found = sorted(found, key=_IN_ORDER)
        oldest, newest = found[0], found[-1]
        if oldest["history_items"] > most:
            raise ChainTooLong(most)
        if newest["history_bytes"] > size:
            raise HistoryTooLarge(size, "previous_response_id")
        if not is_over(newest["status"]):
            raise unfinished_response(response_id)
        if oldest["prev_id"] is not None:
            raise ChainBroken(response_id, oldest["prev_id"])
        items = self._items(found)
        conversation_id = oldest["conversation_id"]
        if conversation_id is None:
            return Chain(items)
        # The chain's first response continued a conversation, so the history begins with the conversation's earlier
        # items.
        limit, room = max(0, most - len(items)), size - newest["history_bytes"]
        named |= {"conversation_id": conversation_id, "pos": oldest["conversation_pos"]}
        earlier = await self._tables.fetch(LOAD_BEFORE, named | {"limit": limit + 1, "bytes": room})
        if not earlier:
            raise ChainBroken(response_id, conversation_id)
        if earlier[0]["size"] > room:
            raise HistoryTooLarge(size, "previous_response_id")
        before = self._items(earlier)
        if len(before) > limit:
            raise ChainTooLong(most)
        return Chain((*before, *items))

    def _brief_chain(self, named: Mapping[str, object]) -> Sequence[Row]:
        """Return the rows of a short history, if the backend can read them without waiting. Otherwise return no
        rows."""
        limit, size = min(self._chain_items, _BRIEF_ITEMS), min(self._history_bytes, _BRIEF_BYTES)
        found = self._tables.fetch_now(LOAD_CHAIN, {**named, "limit": limit, "bytes": size}) or ()
        is_short = found and found[0]["history_items"] <= limit and found[0]["history_bytes"] <= size
        return found if is_short else ()

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """Return the owner's items with these ids. See `History.load_items`."""
        if not item_ids:
            return {}
        named = {"owner": owner, "ids": sorted(set(item_ids)), "bytes": self._history_bytes}
        found = named_items(item_ids, await self._tables.fetch(self._find_items, named), self._history_bytes)
        return {item_id: self._bodies.open_item(item) for item_id, item in found.items()}

    async def load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        """Return the response, the items that the model saw as its prompt, and its output items. Returns None if the
        response does not exist. See `History.load_compared`."""
        found = await self.get(owner, response_id)
        chain = await self.load_chain(owner, response_id) if found is not None else None
        if found is None or chain is None:
            return None
        # Only the items of the chain have the text that the model saw.
        end = len(chain.items) - len(found.output_items)
        return ComparedResponse(found.body, chain.items[:end], chain.items[end:])

    async def ping(self) -> None:
        """For the endpoint `/ready`: raise `StoreError` when this process should get no requests. A local database
        counts as failed when one write or read fails. A shared database counts as failed only after its writes have
        failed for a longer time."""
        await self._writer.ping()

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """Return the response with its output items, or None if the owner has no such response."""
        rows = await self._tables.fetch(GET, {"id": response_id, "owner": owner})
        if not rows:
            return None
        stored_id, status, body = rows[0]["item_id"], rows[0]["type"], rows[0]["body"]
        items = self._bodies.open_items(tuple([stored_item(row) for row in rows[1:]]))
        return StoredResponse(stored_id, status, self._bodies.open_response(body, status), items)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items. Returns False when the owner has no such response."""
        return any((await self._tables.run(delete_statements(owner, response_id)))[-2:])

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """Return a page of the owner's responses by creation time. Cursors are response ids. An unknown cursor raises
        `InvalidRequest`."""
        await check_cursors(page, partial(self._find, owner), "There is no response with this id")
        named = {"owner": owner, **page_parameters(page, self._page_bytes)}
        return response_page(await self._tables.fetch(LIST[page.backward], named), page, self._bodies)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """Return a page of the response's own input items, without its history, or None when the response does not
        exist.

        `after` and `before` refer to the requested order. With only `before`, the page contains the items directly
        before the cursor's item. An unknown cursor raises `InvalidRequest`.
        """
        named = {"id": response_id, "owner": owner, **page_parameters(page, self._page_bytes)}
        return item_page(await self._tables.fetch(INPUT_ITEMS[page.backward], named), page, self._bodies)

    async def _find(self, owner: str, response_id: str) -> Row | None:
        rows = await self._tables.fetch(IS_THERE, {"id": response_id, "owner": owner})
        return rows[0] if rows else None

    async def chain(self, owner: str, response_id: str) -> tuple[ChainedResponse, ...]:
        """Return an overview of the newest 500 responses of the chain to which this response belongs, oldest first. The
        result is empty if the owner has no such response."""
        rows = await self._tables.fetch(CHAIN, {"owner": owner, "id": response_id})
        return tuple(
            [
                ChainedResponse(
                    row["id"],
                    row["prev_id"] or "",
                    row["status"],
                    row["model"],
                    row["created_at"] / 1000,
                    row["input_tokens"] or 0,
                    row["output_tokens"] or 0,
                    row["history_items"],
                )
                for row in reversed(rows)
            ]
        )

    def _items(self, rows: Sequence[Row]) -> tuple[StoredItem, ...]:
        return self._bodies.open_items(tuple([history_item(row) for row in rows if row[1] is not None]))


def delete_statements(owner: str, response_id: str) -> list[Statement]:
    """Return the statements of the transaction that deletes a response. The response existed if one of the last two
    statements changed a row."""
    named = {"id": response_id, "owner": owner}
    locks = [Statement(sql, named, into=[]) for sql in (LOCK_JOB, LOCK_CHAIN)]
    # The store may have written the recorded contents of an unfinished response before the response's row. In this case
    # no foreign key deletes the recorded contents.
    recorded = Statement(FORGET_RESPONSE, named)
    return [*locks, recorded, Statement(DELETE_LAST_OF_CHAIN, named), Statement(DELETE, named)]
