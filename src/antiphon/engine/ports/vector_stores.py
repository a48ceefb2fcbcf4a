"""Defines vector stores as values, and the port that searches them.

Lives here: the values of a vector store, its files, a batch and a hit, and the port `Searcher`. Not here: their storage
(`stores/vector_stores.py`), how files become chunks (`indexing.py`), ranking, HTTP.

Invariant: every operation names the owner. A missing store and another owner's store give the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from antiphon.types.search import DEFAULT_RANKING, Attributes, Filter, Ranking

FileErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

FileState = Literal["in_progress", "completed", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """One chunk that matches a query. `score` is between 0 and 1. `attributes` belong to the chunk's file."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    text: str
    vector_store_id: str = ""


class Searcher(Protocol):
    """Searches vector stores for the API and for the tool `file_search`."""

    async def search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: Filter | None = None,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> list[FoundChunk]:
        """Return at most `limit` chunks: the best hits of all queries in all of these stores, best first.

        Raises `NotFound` for another owner's store, `InvalidRequest` for an expired store, and `StoreError`.
        While the embeddings server fails, the search uses keywords only.
        """


@dataclass(frozen=True, slots=True)
class Chunking:
    """The size of a file's chunks and the overlap of neighbouring chunks, both in tokens."""

    kind: Literal["auto", "static"] = "auto"
    size: int = 800
    overlap: int = 400


AUTO_CHUNKING = Chunking()


@dataclass(frozen=True, slots=True)
class FileStateCounts:
    """The number of files in each state."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """The number of files in all states."""
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class FileError:
    """The reason why the ingestion of a file failed. `code` is one of OpenAI's error codes."""

    code: FileErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A vector store. Times are in seconds, `metadata` is its JSON object, `usage_bytes` is the size of its chunks."""

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
    counts: FileStateCounts


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A file in a vector store."""

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
    """A file to add to a vector store."""

    file_id: str
    filename: str
    attributes: Attributes = field(default_factory=dict)
    chunking: Chunking = AUTO_CHUNKING


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that a client added in one request. `cancelled`: a client cancelled the batch."""

    id: str
    store_id: str
    created_at: float
    cancelled: bool
    counts: FileStateCounts


@dataclass(frozen=True, slots=True)
class StoreChanges:
    """A change of a vector store. A field that is None does not change. `clear_expiry` removes the expiry."""

    name: str | None = None
    metadata: bytes | None = None
    expires_days: int | None = None
    clear_expiry: bool = False
