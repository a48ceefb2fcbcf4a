"""Values and Protocols of stored state, as the engine reads and writes it.

Lives here: histories and upstreams as the runner sees them, and what stores and lists give. Not here: stores
(`stores/`), SQL, sockets, any implementation.

Invariant: every read and write names the owner, and "missing" and "belongs to somebody else" are one answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from antiphon.engine.ports.actions import (
    Chain,
    ResponseRecord,
    StoredItem,
    UpstreamRequest,
)
from antiphon.errors import AntiphonError, ApiError
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.transport import Headers, UpstreamError

_Listed = TypeVar("_Listed")


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
class Page(Generic[_Listed]):
    """One page of a list, in the asked order."""

    items: tuple[_Listed, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class PageQuery:
    """One page of a list. `limit` is 1..100, `after` / `before` are item ids, `descending` is newest first."""

    limit: int = 20
    after: str | None = None
    before: str | None = None
    descending: bool = True

    @property
    def turned(self) -> bool:
        """Whether it is walked against the asked order and then turned round: `before` alone is a page's end."""
        return self.before is not None and self.after is None

    @property
    def backward(self) -> bool:
        """Whether the walk goes from the newest to the oldest."""
        return self.descending != self.turned

    @property
    def cursors(self) -> tuple[tuple[str, str], ...]:
        """The cursors that were given, each as its parameter's name and the id."""
        given = (("after", self.after), ("before", self.before))
        return tuple((name, cursor) for name, cursor in given if cursor is not None)

    @property
    def bounds(self) -> tuple[str | None, str | None]:
        """The ids between which the page lies, the older one first."""
        return (self.before, self.after) if self.descending else (self.after, self.before)

    def shown(self, walked: Sequence[_Listed]) -> tuple[_Listed, ...]:
        """The page, of what was found on the walk: one more than `limit`, where there is more."""
        found = walked[: self.limit]
        return tuple(reversed(found) if self.turned else found)


class History(Protocol):
    """What a response needs of those before it, and where it goes when it is over.

    Every method raises `StoreError` when the database cannot do it; none blocks the event loop.
    """

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing; returns or raises in bounded time.

        When it raises, nothing is stored, and nothing will be: what takes effect too late is undone.

        With a `previous_response_id`, the chain's owner is checked again in the same transaction; a chain that
        is gone or belongs to another owner raises `StoreError`.
        """

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """Every item of the chain that ends in `response_id`, oldest first; None when there is no such response, or it
        is another owner's.

        Raises `ChainBroken` where what it continues, a response or a conversation, was deleted.
        """

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """The owner's items with these ids (input or output of any response); absent ones are left out."""


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation without its items: `created_at` in seconds, `metadata` as its JSON object."""

    id: str
    created_at: float
    metadata: bytes


class Leased(Protocol):
    """Something that is held for a time and must be renewed (`stores/leases.py`)."""

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold what these holders hold for so many seconds from now; returns who still held something.

        Raises `StoreError`.
        """


@dataclass(frozen=True, slots=True)
class PromptChange:
    """What is to become of a prompt. `body` makes a new version, which becomes the default one unless `make_default`
    is False; with an `expected_version` only if that is the last one. `name` counts if `renamed`; `metadata` of None
    stays."""

    body: bytes | None = None
    make_default: bool = True
    expected_version: int | None = None
    renamed: bool = False
    name: str | None = None
    metadata: bytes | None = None


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


class DoorWatch(Protocol):
    """Knows of the gateway's own part in model calls, which may go away while the model server is well."""

    async def gone(self, at: float) -> bool:
        """Whether it went away, or was not there, about this time of the event loop, or stands still now."""


class Upstream(Protocol):
    """Makes chat calls. One call is one `async with`: leaving it early aborts the call at once."""

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send the request and wait for the head; raises `UpstreamCallFailed` when there is none."""

    async def aclose(self) -> None:
        """Close the connections."""
