"""`ResponseStore` whose bodies are sealed at rest.

Lives here: which parts of a response those are. Not here: how (`bodies.py`).

Invariant: a running response's object says so, though the stores cannot write it into a sealed body.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from antiphon.engine.ports.actions import Chain, ResponseRecord, StoredItem
from antiphon.engine.ports.state import Page, PageQuery, ResponseStore, StoredResponse
from antiphon.engine.ports.stored_bodies import with_status
from antiphon.stores.sealed.bodies import Bodies, is_sealed


class SealedResponses:
    """`ResponseStore` over another one."""

    def __init__(self, beneath: ResponseStore, bodies: Bodies) -> None:
        self._beneath = beneath
        self._bodies = bodies
        self.delete = beneath.delete
        self.ping = beneath.ping

    def save(self, record: ResponseRecord) -> Coroutine[Any, Any, None]:
        """Store a finished response; see `History.save`."""
        return self._beneath.save(self._bodies.seal_record(record))

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """Every item of the chain that ends in `response_id`; see `History.load_chain`."""
        chain = await self._beneath.load_chain(owner, response_id)
        return None if chain is None else Chain(self._bodies.open_items(chain.items))

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids; see `History.load_items`."""
        found = await self._beneath.load_items(owner, item_ids)
        return {name: self._bodies.open_item(item) for name, item in found.items()}

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""
        found = await self._beneath.get(owner, response_id)
        return None if found is None else self._opened(found)

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """A page of the owner's responses; see `ResponseStore.list`."""
        found = await self._beneath.list(owner, page)
        return Page(tuple([self._opened(one) for one in found.items]), found.has_more)

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """A page of the response's own input items; see `ResponseStore.input_items`."""
        found = await self._beneath.input_items(owner, response_id, page)
        return None if found is None else Page(self._bodies.open_items(found.items), found.has_more)

    def _opened(self, found: StoredResponse) -> StoredResponse:
        body = running_body(self._bodies, found.body, found.status)
        return StoredResponse(found.id, found.status, body, self._bodies.open_items(found.output_items))


def running_body(bodies: Bodies, stored: bytes, status: str) -> bytes:
    """The object of a response: while it runs, its row has the body that it was queued with. Raises `StoreError`."""
    body = bodies.open(stored)
    return with_status(body, status) if status == "in_progress" and is_sealed(stored) else body
