"""Vector stores as values, and the port that searches them.

Lives here: what a vector store, a file in it, a batch, a filter and a hit are; the port `Searcher`. Not here: what
keeps them (`stores/vector_stores.py`), how files become chunks (`indexing.py`), ranking, HTTP.

Invariant: every operation names the owner, and "missing" and "belongs to somebody else" are one answer.
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
    ) -> list[FoundChunk]:
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
class FileStateCounts:
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
    counts: FileStateCounts


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
    counts: FileStateCounts


@dataclass(frozen=True, slots=True)
class StoreChanges:
    """What to change of a store: None leaves a field as it is, `clear_expiry` takes the expiry away."""

    name: str | None = None
    metadata: bytes | None = None
    expires_days: int | None = None
    clear_expiry: bool = False
