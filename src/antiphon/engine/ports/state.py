"""Defines the ports through which the engine and operators use stored state, and the port through which the engine
calls upstreams.

`History` loads and stores responses, and `Upstream` makes model calls. Through `OwnerData`, an operator counts,
exports, moves and deletes stored data. The module also defines values that stores return, such as a page of a list. Not
here: any implementation (`stores/`, `upstream/`), the contents of files (`files.py`), and containers (`containers.py`).

Invariants: every read and write names the owner. A store gives the same answer for a missing object and for another
owner's object. The operations of an operator cover every stored object that has an owner.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from antiphon.engine.ports.actions import (
    Chain,
    ComparedResponse,
    ResponseRecord,
    StoredItem,
    UpstreamRequest,
)
from antiphon.errors import AntiphonError, ApiError
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.transport import Headers, UpstreamError

_Listed = TypeVar("_Listed")


class UpstreamCallFailed(AntiphonError):
    """A model call failed in transport, before the answer's head or in the middle of its body.

    `error.fault` is the kind of failure, such as `UpstreamFault.UNREACHABLE`. `error.detail` describes the failure for
    the log.
    """

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(f"{error.fault.value}: {error.detail}")
        self.error = error


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A stored response. `body` is its JSON object without `output`, and `output_items` are its output."""

    id: str
    status: str
    body: bytes
    output_items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[_Listed]):
    """One page of a list, in the requested order. `has_more`: the list has more entries after this page.

    If the query has only `before`, `has_more` means that the list has more entries before this page.
    """

    items: tuple[_Listed, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Selects one page of a list. `after` and `before` are cursors: ids of entries that the page does not include.

    `limit` is between 1 and 100. `descending` means newest first. With only `before`, the page has the entries directly
    before the cursor.

        PageQuery(limit=2)                       # the two newest entries: c, b
        PageQuery(limit=2, after="b")            # the next page: a
        PageQuery(limit=2, before="a")           # the entries directly before a: c, b
    """

    limit: int = 20
    after: str | None = None
    before: str | None = None
    descending: bool = True

    @property
    def turned(self) -> bool:
        """Whether the store reads the entries in reverse order and then reverses the page. True when only `before` is
        set."""
        return self.before is not None and self.after is None

    @property
    def backward(self) -> bool:
        """Whether the store reads from the newest to the oldest."""
        return self.descending != self.turned

    @property
    def cursors(self) -> tuple[tuple[str, str], ...]:
        """The cursors of the request, each as a pair of parameter name and id."""
        given = (("after", self.after), ("before", self.before))
        return tuple((name, cursor) for name, cursor in given if cursor is not None)

    @property
    def bounds(self) -> tuple[str | None, str | None]:
        """The cursors between which the page lies: first the id of the older entry, then the id of the newer entry."""
        return (self.before, self.after) if self.descending else (self.after, self.before)

    def shown(self, walked: Sequence[_Listed]) -> tuple[_Listed, ...]:
        """Return the page in the order that the client requested.

        `walked` are the entries in the order in which the store read them, with one beyond `limit` if more exist.
        """
        found = walked[: self.limit]
        return tuple(reversed(found) if self.turned else found)


class History(Protocol):
    """Loads the history of a response, and stores a finished response.

    Every method raises `StoreError` when the database fails. No method blocks the event loop.
    """

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items in one transaction. The call ends in bounded time.

        After an error the response is not stored. If a write that seemed to fail takes effect after all, the store
        deletes that response.

        With a `previous_response_id`, the same transaction checks that the chain still belongs to the owner. A chain
        that is deleted or belongs to another owner raises `PredecessorGone`, a `StoreError`.
        """

    async def load_chain(self, owner: str, response_id: str) -> Chain | None:
        """Return every item of the chain that ends in `response_id`, oldest first.

        Returns None when the owner has no such response. Raises an `InvalidRequest`:

        - `ChainBroken` when the response or the conversation that it continues was deleted.
        - `ChainTooLong` or `HistoryTooLarge` when the history exceeds the limit of items or of bytes.
        - `unfinished_response` (`jobs.py`) when the response has not ended.
        """

    async def load_items(self, owner: str, item_ids: tuple[str, ...]) -> dict[str, StoredItem]:
        """Return the owner's input and output items with these ids, by id. The result omits missing items.

        Raises `HistoryTooLarge` when the items exceed the limit of bytes.
        """

    async def load_compared(self, owner: str, response_id: str) -> ComparedResponse | None:
        """Return a response with the items of its prompt, or None when the owner has no such response.

        Raises the errors of `load_chain` when the prompt is incomplete, unfinished or too large.
        """


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation (`conv_…`) without its items. `created_at`: seconds since the epoch. `metadata`: a JSON object."""

    id: str
    created_at: float
    metadata: bytes


class Leased(Protocol):
    """A store whose leases the holders must renew (`stores/leases.py`)."""

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Renew the leases of these holders for `seconds` from now. Returns those holders that still have their lease.
        An expired lease counts too, until another holder or a sweep takes it.

        Raises `StoreError`.
        """


@dataclass(frozen=True, slots=True)
class PromptChange:
    """A change of a prompt's template, name or metadata.

    If `body` is set, the change creates a new version. This version becomes the default unless `make_default` is False.
    If `expected_version` is set, the change applies only while that version is the last version. If `renamed` is true,
    `name` replaces the prompt's name. If `metadata` is None, the metadata does not change.
    """

    body: bytes | None = None
    make_default: bool = True
    expected_version: int | None = None
    renamed: bool = False
    name: str | None = None
    metadata: bytes | None = None


class FileFetcher(Protocol):
    """Fetches the files that a request names by URL."""

    async def fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        """Fetch every URL's file. A URL that fails maps to an error for the client (a 400 without `param`).

        One call fetches all URLs of a request, because the limits apply to the sum of all files of a request.
        """


class UpstreamAnswer(Protocol):
    """An upstream's answer, whose head has arrived. `status` is the HTTP status. Header names are in lower case."""

    status: int
    headers: Headers

    def body(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body as they arrive. Raises `UpstreamCallFailed` when the transport fails."""


class DoorWatch(Protocol):
    """Observes the gateway (Envoy) that forwards the model calls. The gateway may stop while the model server is
    healthy."""

    async def gone(self, at: float) -> bool:
        """Return whether the gateway stopped or was down at about the time `at`, or hangs at present. `at` is a time of
        the event loop's clock."""


class Upstream(Protocol):
    """Makes model calls. One `async with` block is one call, and an early exit from the block aborts the call.

    For example, a caller that reads the whole body:

        async with upstream.call(request) as answer:
            body = b"".join([chunk async for chunk in answer.body()])
    """

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send the request and wait for the answer's head. Raises `UpstreamCallFailed` when no head arrives."""

    async def aclose(self) -> None:
        """Close the connections to the upstreams."""


@dataclass(frozen=True, slots=True)
class OwnerCounts:
    """The number of one owner's stored objects, by kind."""

    owner: str
    responses: int = 0
    conversations: int = 0
    prompts: int = 0
    files: int = 0
    vector_stores: int = 0


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """One exported row of an owner: its kind, the two values `id` and `of` that identify the row, and its decoded JSON.

    `kind` is a name such as `responses` or `response_items`. For an item of a response, `id` and `of` are the
    response's id and the item's part (`input`, `output` or `shown`).
    """

    kind: str
    id: object
    of: object
    data: Any


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The result of a vacuum of one database: its size in bytes before and after the vacuum."""

    name: str
    before: int
    after: int


class NotMovable(Exception):
    """Data of one owner cannot move to another owner now. The message tells the operator why."""


class OwnerData(Protocol):
    """Access to the data of all owners.

    Only commands use this port, so a method may take long and block the event loop. Every method raises `StoreError`.
    """

    async def owners(self) -> list[OwnerCounts]:
        """Return the counts of every owner that has stored objects, sorted by owner."""

    def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Yield an owner's stored rows except files, kind by kind. The rows of one database come from one snapshot."""

    async def delete(self, owner: str) -> int:
        """Delete an owner's stored rows except files. The method deletes the rows in batches, so that other requests
        can write between two batches.

        Returns the number of deleted chains, conversations, prompts, vector stores, keys and days of usage.
        """

    async def obstacles(self, old: str, new: str) -> list[str]:
        """Return the reasons why `move` would refuse to move the data of `old` to `new` now. Each reason is one
        sentence. If there are no reasons, `move` can begin.

        If both owners have an object with the same id, this is an obstacle, because ids are unique within an owner.
        (Clients may choose some ids.) Work in progress is an obstacle, because a running request stores its result for
        the owner that it began with.
        """

    def move(self, old: str, new: str) -> AsyncGenerator[str]:
        """Move all data of the owner `old` to the owner `new`, except containers. The method uses several transactions.
        After each transaction, the method yields the kind of data that it moved.

        After an interruption, a second call moves the remaining data. Raises `NotMovable` before the first transaction
        if there are obstacles. Raises `NotMovable` at the end if requests kept some of the data in use.
        """

    async def vacuum(self) -> list[Shrunk]:
        """Return the unused space in the database files to the file system. Other writers wait until the vacuum
        ends."""

    async def aclose(self) -> None:
        """Close the databases."""
