"""Reads and deletes responses and their items, for any backend.

Lives here: the SQL that reads and deletes, the limits of a history, the missing parts of one, cursors and pages. Not
here: storing a response and finding items by id, which each backend implements (`sqlite/responses.py`,
`postgres/responses.py`); how a backend runs statements (`tables.py`).

A chain never crosses owners: the insert of a response enforces this. So reading a chain checks only the owner of its
last response. Each response stores only its own items, so no item is stored twice.

Deleting a response locks its chain. A concurrent response that continues the chain either commits first and is seen, or
fails because its predecessor is deleted.

Invariant: a query knows the size of a history before it reads the items. It reads nothing of a history over the limit.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from antiphon.engine.ports.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports.state import Page, PageQuery, StoredResponse
from antiphon.engine.ports.stored_bodies import is_over, unfinished_response
from antiphon.errors import ChainBroken, ChainTooLong, HistoryTooLarge
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.pages import Row, check_cursors, history_item, item_page, named_items, response_page, stored_item
from antiphon.stores.retention import SWEEPER
from antiphon.stores.tables import Statement, Tables, both_ways, page_parameters, within

# Newest turn first in `turn`. Only the seed checks the owner, and joins keep their order. After ANALYZE, another
# condition on `responses` in the recursive step makes SQLite build a Bloom filter over the whole table on every call. A
# chain over a limit stops at the seed and yields no items; its size is in `history_items` and `history_bytes`. `depth <
# :limit` matters only for a damaged database with a circular chain.
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
SELECT turn.prev_id AS prev_id, turn.history_items AS history_items, turn.history_bytes AS history_bytes,
       turn.status AS status, turn.conversation_id AS conversation_id, turn.conversation_pos AS conversation_pos,
       i.item_id, i.type, i.body, i.shown
FROM turn LEFT JOIN response_items i ON i.response_id = turn.id
  AND turn.history_items <= :limit AND turn.history_bytes <= :bytes
ORDER BY turn.depth DESC, i.dir, i.seq
"""
# The items in the conversation before the first response of a chain. No items when the id now names another
# conversation, or when the sweep is deleting it and some items may be missing.
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
# The response is the row before its items, so that both come from one snapshot.
GET = """
SELECT -1 AS seq, id AS item_id, status AS type, body FROM responses WHERE id = :id AND owner = :owner
UNION ALL
SELECT i.seq, i.item_id, i.type, i.body
FROM responses r CROSS JOIN response_items i
WHERE r.id = :id AND r.owner = :owner AND i.response_id = r.id AND i.dir = 1
ORDER BY 1
"""
IS_THERE = "SELECT 1 FROM responses WHERE id = :id AND owner = :owner"
# A page lies strictly between two items of the list (`low` and `high`, either may be absent). No row: no such
# response. A row without an item: an empty page.
INPUT_ITEMS = both_ways(f"""
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
{within("place {order}")}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM responses r CROSS JOIN edge LEFT JOIN cut ON true
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 0 AND i.seq = cut.place
WHERE r.id = :id AND r.owner = :owner
ORDER BY cut.place {{order}}
""")
# A page lies strictly between two responses, either of which may be absent. Of two with the same time, the one stored
# later is newer. The rows of a page come first, then their output items, all from one snapshot.
_AT = "coalesce((SELECT created_at FROM responses WHERE id = :{0} AND owner = :owner), {1})"
_NUMBER = "coalesce((SELECT rowid FROM responses WHERE id = :{0} AND owner = :owner), {1})"
_FIRST, _LAST = "-1", "9223372036854775807"
LIST = both_ways(f"""
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
{within("at {order}, number {order}", "CAST(:bytes AS bigint)")}
SELECT r.id, r.status, CASE WHEN cut.fits THEN r.body END AS response, i.item_id, i.type, i.body
FROM cut CROSS JOIN responses r
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 1 AND cut.fits
WHERE r.id = cut.place
ORDER BY r.created_at {{order}}, r.rowid {{order}}, i.seq
""")

# Locks the job first (as its worker does), then the chain. With both locked, no transaction can add to the chain, and
# the next statement sees everything that was added before.
LOCK_JOB = "SELECT 1 FROM jobs WHERE response_id = :id AND owner = :owner FOR UPDATE"
LOCK_CHAIN = """
SELECT 1 FROM chains WHERE id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner) FOR UPDATE
"""
# Deletes the chain when this is its last response; the response goes with it. Otherwise deletes the response; its items
# follow by foreign key. One of the two changes a row when there was something to delete.
DELETE_LAST_OF_CHAIN = """
DELETE FROM chains
WHERE id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner)
  AND NOT EXISTS (SELECT 1 FROM responses other WHERE other.chain_id = chains.id AND other.id <> :id)
"""
DELETE = "DELETE FROM responses WHERE id = :id AND owner = :owner"


class ResponseWriter(Protocol):
    """The part that each backend implements: storing a response, and the health check. Every method raises
    `StoreError`."""

    def save(self, record: ResponseRecord) -> Coroutine[object, object, None]:
        """See `History.save`."""

    async def ping(self) -> None:
        """See `ResponseStore.ping`."""


class ResponseStore:
    """Responses and their items, in tables that the caller closes: implements `History` and the reads of the API. A
    response is durable when `save` returns.

    Every method raises `StoreError` when the database fails; none blocks the event loop.
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
        """`find_items`: the backend's SQL that finds one item for each of `:ids`. It prefers an output to an input and
        newer items to older ones; it reads no bodies when they exceed `:bytes`.

        `chain_items`, `history_bytes`: the limits of a history. `page_bytes`: the maximum bytes of a page of a list.
        `bodies` seals responses and items."""
        self._tables = tables
        self._writer = writer
        self._find_items = find_items
        self._chain_items = chain_items
        self._history_bytes = history_bytes
        self._page_bytes = page_bytes
        self._bodies = bodies

    def save(self, record: ResponseRecord) -> Coroutine[object, object, None]:
        """Store a finished response with its items, all or nothing; see `History.save`."""
        return self._writer.save(self._bodies.seal_record(record))

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """The history that ends in `response_id`, or None; see `History.load_chain`. Raises `ChainTooLong` and
        `HistoryTooLarge` before it reads items, and `ChainBroken`."""
        most, size = self._chain_items, self._history_bytes
        named: dict[str, object] = {"id": response_id, "owner": owner, "limit": most, "bytes": size}
        found = await self._tables.fetch(LOAD_CHAIN, named)
        if not found:
            return None
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
        # The items that the conversation had before the chain's first response.
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

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids; see `History.load_items`."""
        if not item_ids:
            return {}
        named = {"owner": owner, "ids": sorted(set(item_ids)), "bytes": self._history_bytes}
        found = named_items(item_ids, await self._tables.fetch(self._find_items, named), self._history_bytes)
        return {item_id: self._bodies.open_item(item) for item_id, item in found.items()}

    async def ping(self) -> None:
        """Raise `StoreError` when requests should go to another process (for `/ready`). A local database fails when a
        write or a read fails; a shared one only when it has failed for long."""
        await self._writer.ping()

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""
        rows = await self._tables.fetch(GET, {"id": response_id, "owner": owner})
        if not rows:
            return None
        stored_id, status, body = rows[0]["item_id"], rows[0]["type"], rows[0]["body"]
        items = self._bodies.open_items(tuple([stored_item(row) for row in rows[1:]]))
        return StoredResponse(stored_id, status, self._bodies.open_response(body, status), items)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when the owner has no such response."""
        return any((await self._tables.run(deleting(owner, response_id)))[-2:])

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """A page of the owner's responses by creation time. Cursors are response ids; with both, `after` counts. An
        unknown cursor raises `InvalidRequest`."""
        if page.after is not None:
            page = replace(page, before=None)
        await check_cursors(page, partial(self._find, owner), "There is no response with this id")
        named = {"owner": owner, **page_parameters(page, self._page_bytes)}
        return response_page(await self._tables.fetch(LIST[page.backward], named), page, self._bodies)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """A page of the response's own input items, or None when the response does not exist.

        `after` and `before` refer to the requested order. With only `before`, the page ends just before that item. An
        unknown cursor raises `InvalidRequest`.
        """
        named = {"id": response_id, "owner": owner, **page_parameters(page, self._page_bytes)}
        return item_page(await self._tables.fetch(INPUT_ITEMS[page.backward], named), page, self._bodies)

    async def _find(self, owner: str, response_id: str) -> Row | None:
        rows = await self._tables.fetch(IS_THERE, {"id": response_id, "owner": owner})
        return rows[0] if rows else None

    def _items(self, rows: Sequence[Row]) -> tuple[StoredItem, ...]:
        found = [history_item(row) for row in rows if row["item_id"] is not None]
        return self._bodies.open_items(tuple(found))


def deleting(owner: str, response_id: str) -> list[Statement]:
    """The transaction that deletes a response. The counts of its last two steps tell whether there was one."""
    named = {"id": response_id, "owner": owner}
    locks = [Statement(sql, named, into=[]) for sql in (LOCK_JOB, LOCK_CHAIN)]
    return [*locks, Statement(DELETE_LAST_OF_CHAIN, named), Statement(DELETE, named)]
