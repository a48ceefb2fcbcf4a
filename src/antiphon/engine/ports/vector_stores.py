"""Vector stores, as the engine and the API see them: values, and the ports behind which they are kept and searched.

Lives here: what a vector store, a file in it, a batch, a filter and a hit are; the ports `VectorStores` (what the API
changes and shows) and `Searcher`. Not here: how files become chunks (`indexing.py`), SQL, ranking, HTTP.

Invariant: every operation names the owner, and "missing" and "belongs to somebody else" are one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.types.search import DEFAULT_RANKING, Attributes, Filter, Ranking

FileErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

FileState = Literal["in_progress", "completed", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One chunk that fits a query: `score` is 0..1, `text` the chunk, `attributes` the file's."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    text: str
    vector_store_id: str = ""


class Searcher(Protocol):
    """Searches vector stores: what the API and the tool `file_search` ask."""

    async def search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: Filter | None = None,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> list[SearchHit]:
        """The best hits of all queries over all stores together, best first.

        Raises `NotFound` for a store that is not the owner's, `InvalidRequest` for an expired one, `StoreError`.
        While the embeddings server fails, the search is one of keywords alone.
        """


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a file is cut, in tokens."""

    kind: Literal["auto", "static"] = "auto"
    size: int = 800
    overlap: int = 400


AUTO_CHUNKING = Chunking()


@dataclass(frozen=True, slots=True)
class Counts:
    """Files by their state."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class FileError:
    """Why a file failed; `code` is one of OpenAI's."""

    code: FileErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A vector store: times in seconds, `metadata` as its JSON object, `usage_bytes` of what its files' chunks take."""

    id: str
    created_at: float
    last_active_at: float
    name: str | None
    description: str | None
    metadata: bytes
    expires_days: int | None
    expires_at: float | None
    expired: bool
    usage_bytes: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A file in a store."""

    file_id: str
    store_id: str
    filename: str
    state: FileState
    created_at: float
    usage_bytes: int
    chunking: Chunking
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: FileError | None = None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to add to a store."""

    file_id: str
    filename: str
    attributes: Attributes = field(default_factory=dict)
    chunking: Chunking = AUTO_CHUNKING


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that were added in one request. `cancelled`: somebody cancelled it."""

    id: str
    store_id: str
    created_at: float
    cancelled: bool
    counts: Counts


@dataclass(frozen=True, slots=True)
class StoreChanges:
    """What to change of a store: None leaves a field as it is, `clear_expiry` takes the expiry away."""

    name: str | None = None
    metadata: bytes | None = None
    expires_days: int | None = None
    clear_expiry: bool = False


class VectorStores(Protocol):
    """Stores, their files and batches, and the work of ingestion; durable once a method returned.

    Every method raises `StoreError` when the database cannot do it; none blocks the event loop.
    """

    on_work: Callable[[], None]
    """Called when there are files to ingest."""

    async def create(
        self,
        owner: str,
        store_id: str,
        *,
        name: str | None,
        description: str | None,
        metadata: bytes,
        expires_days: int | None,
        files: Sequence[NewFile] = (),
        once: OnceOnly | None = None,
    ) -> VectorStore:
        """Make a store, with these files to ingest. With a key only once: raises `AlreadyMade` with the store's id."""

    async def made(self, once: OnceOnly) -> str | None:
        """What this very request made before, to be asked for before what it refers to."""

    async def get(self, owner: str, store_id: str) -> VectorStore | None:
        """The store, or None."""

    async def list(self, owner: str, page: PageQuery) -> Page[VectorStore]:
        """A page of the owner's stores, by their time of creation. A cursor that is none is an `InvalidRequest`."""

    async def update(self, owner: str, store_id: str, changes: StoreChanges) -> VectorStore | None:
        """Change the store, which counts as being active; None when there is none."""

    async def delete(self, owner: str, store_id: str) -> bool:
        """Delete the store with everything in it; False when there is none."""

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now (to a minute)."""

    async def add_files(
        self,
        owner: str,
        store_id: str,
        files: Sequence[NewFile],
        *,
        batch_id: str | None = None,
        once: OnceOnly | None = None,
    ) -> bool:
        """Add files for ingestion, as a batch when it is named; False when there is no such store.

        A file that is there already is ingested anew, and until that is over it is not found. With a key only once:
        raises `AlreadyMade` with the id of the batch, or of the first file.
        """

    async def get_file(self, owner: str, store_id: str, file_id: str) -> VectorFile | None:
        """The file in the store, or None."""

    async def list_files(
        self, owner: str, store_id: str, page: PageQuery, *, state: str | None = None, batch_id: str | None = None
    ) -> Page[VectorFile] | None:
        """A page of the store's (or the batch's) files; None when there is no such store or batch."""

    async def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Attributes) -> bool:
        """Replace a file's attributes; False when there is none."""

    async def remove_file(self, owner: str, store_id: str, file_id: str) -> bool:
        """Take a file out of the store; False when there is none."""

    async def forget_file(self, owner: str, file_id: str) -> None:
        """Take a file out of all the owner's stores: it was deleted."""

    async def get_batch(self, owner: str, store_id: str, batch_id: str) -> Batch | None:
        """The batch, or None."""

    async def cancel_batch(self, owner: str, store_id: str, batch_id: str) -> bool:
        """Cancel what of the batch is still in progress; False when there is none."""

    async def file_text(
        self, owner: str, store_id: str, file_id: str, first: int, limit: int
    ) -> tuple[str, ...] | None:
        """The text of up to `limit` of the file's chunks from number `first` on; None when there is no such file."""
