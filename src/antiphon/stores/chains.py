"""The history that ends in a response, read from any backend's rows.

Lives here: the limits of a history, and what of one may be missing. Not here: the rows (`sqlite/responses.py`,
`postgres/responses.py`).

Invariant: nothing of a history that is too large is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from antiphon.engine.ports.actions import Chain, StoredItem
from antiphon.engine.ports.stored_bodies import is_over, unfinished_response
from antiphon.errors import ChainBroken, ChainTooLong, HistoryTooLarge
from antiphon.stores.pages import Row, history_item


class ChainRows(Protocol):
    """The rows of histories. Every method raises `StoreError`."""

    async def chain(self, owner: str, response_id: str, limit: int, size: int) -> Sequence[Row]:
        """The responses up to this one with their items, the oldest first; no items where there are more than `limit`
        or they take more than `size` bytes. No row: no response."""

    async def before(
        self, owner: str, conversation_id: str, position: int | None, limit: int, size: int
    ) -> Sequence[Row]:
        """The items of a conversation before this position, at most `limit`, with their `size`; no items where they
        take more than `size` bytes. No row: no conversation."""


async def load_chain(rows: ChainRows, owner: str, response_id: str, max_items: int, max_bytes: int) -> Chain | None:
    """The history that ends in `response_id`, or None; raises `ChainTooLong`, `HistoryTooLarge` before any is read, and
    `ChainBroken`."""
    found = await rows.chain(owner, response_id, max_items, max_bytes)
    if not found:
        return None
    oldest, newest = found[0], found[-1]
    if oldest["history_items"] > max_items:
        raise ChainTooLong(max_items)
    if newest["history_bytes"] > max_bytes:
        raise HistoryTooLarge(max_bytes, "previous_response_id")
    if not is_over(newest["status"]):
        raise unfinished_response(response_id)
    if oldest["prev_id"] is not None:
        raise ChainBroken(response_id, oldest["prev_id"])
    items = _items(found)
    conversation_id = oldest["conversation_id"]
    if conversation_id is None:
        return Chain(tuple(items))
    # What the chain's first response found in its conversation.
    limit = max(0, max_items - len(items))
    room = max_bytes - newest["history_bytes"]
    earlier = await rows.before(owner, conversation_id, oldest["conversation_pos"], limit + 1, room)
    if not earlier:
        raise ChainBroken(response_id, conversation_id)
    if earlier[0]["size"] > room:
        raise HistoryTooLarge(max_bytes, "previous_response_id")
    before = _items(earlier)
    if len(before) > limit:
        raise ChainTooLong(max_items)
    return Chain((*before, *items))


def _items(rows: Sequence[Row]) -> list[StoredItem]:
    return [history_item(row) for row in rows if row["item_id"] is not None]
