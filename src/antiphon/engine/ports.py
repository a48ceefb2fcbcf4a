"""What the engine needs from the world, as protocols; implementations live elsewhere and never import each other.

Lives here: the store and the upstream as the runner and the API see them. Not here: SQL, sockets, any
implementation.

Invariant: every read and write names the owner, and "missing" and "belongs to somebody else" are one answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.actions import Chain, Headers, ResponseRecord, StoredItem, UpstreamError, UpstreamRequest
from antiphon.errors import AntiphonError, ApiError
from antiphon.types.files import FetchedFile

__all__ = [
    "FileFetcher",
    "ItemPage",
    "PageQuery",
    "ResponseStore",
    "StoredResponse",
    "Upstream",
    "UpstreamAnswer",
    "UpstreamCallFailed",
]


class UpstreamCallFailed(AntiphonError):
    """A model call failed in transport: before its head, or in the middle of its body."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(f"{error.fault.value}: {error.detail}")
        self.error = error


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A stored response: `body` is its JSON object without `output`; `output_items` complete it."""

    id: str
    status: str
    body: bytes
    output_items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """One page of a list. `limit` is 1..100, `after` / `before` are item ids, `descending` is newest first."""

    limit: int = 20
    after: str | None = None
    before: str | None = None
    descending: bool = True


@dataclass(frozen=True, slots=True)
class ItemPage:
    """One page of items in the asked order."""

    items: tuple[StoredItem, ...]
    has_more: bool


class ResponseStore(Protocol):
    """Responses and their items, durable once `save` returned.

    Every method raises `StoreError` when the database cannot do it; none blocks the event loop.
    """

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing.

        With a `previous_response_id`, the chain's owner is checked again in the same transaction; a chain that
        is gone or belongs to another owner raises `StoreError`.
        """

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """Every item of the chain that ends in `response_id`, oldest first; None when it cannot be continued.

        None covers: no such response, another owner's, and a chain with a deleted ancestor.
        """

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids (input or output of any response); absent ones are left out."""

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when there is none for this owner."""

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> ItemPage | None:
        """A page of the response's own input items, or None when the response does not exist."""

    async def ping(self) -> None:
        """Raise `StoreError` unless the database can be written to and read (for `/ready`)."""

    async def aclose(self) -> None:
        """Finish what was accepted, then close."""


class FileFetcher(Protocol):
    """Fetches what a request names by URL."""

    async def fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        """Every URL's file, or the error a client gets for it (a 400 without `param`); never raises.

        All URLs of one request in one call: the limits hold for them together.
        """


class UpstreamAnswer(Protocol):
    """An upstream's answer once its head has arrived."""

    status: int
    headers: Headers

    def body(self) -> AsyncIterator[bytes]:
        """Body parts as they arrive, in any split; raises `UpstreamCallFailed` when the transport fails."""


class Upstream(Protocol):
    """Makes chat calls. One call is one `async with`: leaving it early aborts the call at once."""

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send the request and wait for the head; raises `UpstreamCallFailed` when there is none."""

    async def aclose(self) -> None:
        """Close the connections."""
