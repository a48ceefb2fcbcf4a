"""What the engine needs from the world, as protocols; implementations live elsewhere and never import each other.

Lives here: the store and the upstream as the runner and the API see them. Not here: SQL, sockets, any
implementation.

Invariant: every read and write names the owner, and "missing" and "belongs to somebody else" are one answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from antiphon.engine.ports.actions import (
    Chain,
    OnceOnly,
    ResponseRecord,
    StoredItem,
    StoredPrompt,
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


class ResponseStore(History, Protocol):
    """Responses and their items, durable once `save` returned."""

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The response with its output items, or None."""

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete the response and its items; False when there is none for this owner."""

    async def list(self, owner: str, page: PageQuery) -> Page[StoredResponse]:
        """A page of the owner's responses, by their time of creation; cursors are ids of responses.

        A cursor that is none is an `InvalidRequest`.
        """

    async def input_items(self, owner: str, response_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """A page of the response's own input items, or None when the response does not exist."""

    async def ping(self) -> None:
        """Raise `StoreError` when requests should go elsewhere (for `/ready`): a database of this machine's own
        cannot be written to and read, or one that is shared could not be for long."""


class OwnerRoom(Protocol):
    """What an owner may still store."""

    async def check(self, owner: str) -> None:
        """Raises `OwnerFull` when the owner has stored as much as one may, and `StoreError`."""


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation without its items: `created_at` in seconds, `metadata` as its JSON object."""

    id: str
    created_at: float
    metadata: bytes


class Leased(Protocol):
    """Something that is held for a time and must be renewed (`engine/running/leases.py`)."""

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold what these holders hold for so many seconds from now; returns who still held something.

        Raises `StoreError`.
        """


class ConversationStore(Leased, Protocol):
    """Conversations, their items in order, and the lock of the response that runs on one.

    Every method raises `StoreError` when the database cannot do it. What changes items, or deletes the conversation,
    raises `ConversationLocked` while a response runs on it.
    """

    async def create(
        self,
        owner: str,
        conversation_id: str,
        metadata: bytes,
        items: Sequence[StoredItem] = (),
        once: OnceOnly | None = None,
    ) -> StoredConversation:
        """Make a conversation with these items, all or nothing. Raises `AlreadyMade` for a key that is bound."""

    async def made(self, once: OnceOnly) -> str | None:
        """The conversation that this very request made before, to be asked for before what it refers to."""

    async def get(self, owner: str, conversation_id: str) -> StoredConversation | None:
        """The conversation, or None."""

    async def update(self, owner: str, conversation_id: str, metadata: bytes) -> StoredConversation | None:
        """Replace the metadata; None when there is no such conversation."""

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """Delete the conversation with its items; False when there is none. Responses made in it stay."""

    async def list(self, owner: str, page: PageQuery) -> Page[StoredConversation]:
        """A page of the owner's conversations, by their time of creation; cursors are ids of conversations."""

    async def add_items(self, owner: str, conversation_id: str, items: Sequence[StoredItem]) -> bool:
        """Append the items, all or none; False when there is no such conversation."""

    async def items(self, owner: str, conversation_id: str, page: PageQuery) -> Page[StoredItem] | None:
        """A page of the items, or None when there is no such conversation.

        A cursor that is not in the conversation is an `InvalidRequest`.
        """

    async def get_item(self, owner: str, conversation_id: str, item_id: str) -> StoredItem | None:
        """One item of the conversation, or None."""

    async def delete_item(self, owner: str, conversation_id: str, item_id: str) -> bool:
        """Take one item out; False when it is not there."""

    async def find_items(self, owner: str, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """The owner's items with these ids, in whatever conversation; absent ones are left out."""

    async def load(
        self, owner: str, conversation_id: str, *, holder: str = "", seconds: float = 0.0, create: bool = False
    ) -> tuple[StoredItem, ...] | None:
        """All items, oldest first; None when there is no such conversation (with `create` it is made).

        With a `holder` (a response's id) the conversation is locked for it first, for so many seconds; while another
        has it this raises `ConversationLocked`. The same holder may come again. Saving that response
        (`ResponseStore.save`) or `release` gives the lock back. Raises `ConversationTooLong`.
        """

    async def release(self, holder: str) -> None:
        """Give the lock back, if `holder` has one."""


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


class PromptStore(Protocol):
    """Prompts and their versions. Every method raises `StoreError` when the database cannot do it."""

    async def create(
        self,
        owner: str,
        prompt_id: str,
        name: str | None,
        metadata: bytes,
        body: bytes,
        once: OnceOnly | None = None,
    ) -> StoredPrompt:
        """Make a prompt whose first version is `body`. Raises `AlreadyMade` for a key that is bound."""

    async def get(self, owner: str, prompt_id: str, version: int | None = None) -> StoredPrompt | None:
        """This version, or the default one; None when there is no such prompt or version."""

    async def list(self, owner: str, page: PageQuery) -> Page[StoredPrompt]:
        """A page of the owner's prompts, by their time of creation; cursors are ids of prompts.

        A cursor that is none is an `InvalidRequest`.
        """

    async def versions(self, owner: str, prompt_id: str, page: PageQuery) -> Page[StoredPrompt] | None:
        """A page of a prompt's versions, by their numbers, which are the cursors; None when there is no such prompt.

        It may end before `limit`, with `has_more`, where its versions are large. A cursor that is none is an
        `InvalidRequest`.
        """

    async def change(self, owner: str, prompt_id: str, change: PromptChange) -> StoredPrompt | None:
        """Make the change, all of it or none; returns the version that is its result.

        None when there is no such prompt. Raises `VersionConflict`.
        """

    async def set_default(self, owner: str, prompt_id: str, version: int) -> StoredPrompt | None:
        """Make this version the default; None when there is no such prompt or version."""

    async def delete(self, owner: str, prompt_id: str) -> bool:
        """Delete the prompt with all its versions; False when there is none."""


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
