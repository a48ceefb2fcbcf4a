"""Defines vector stores as values, and the ports that index and search them.

The ports are `Searcher`, `Ingestion` (the durable queue of files to chunk), `ChunkIndex` (the database queries of a
search) and `Embedder`. Not here: the storage of vector stores (`stores/vector_stores.py`), SQL, the extraction of text,
ranking, HTTP.

A *file number* identifies one ingestion of one file into one vector store. The high bits of a chunk's number are the
file number.

Invariants: every operation names the owner. For another owner's vector store, an operation returns the same as for a
missing one. After the ingestion of a file is completed, the chunks of its file number never change. A file that is
ingested again gets another file number. So a cached vector is valid as long as the database has its file number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from antiphon.errors import AntiphonError
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
        """Return at most `limit` chunks: the best hits of all queries in all of these vector stores, best first.

        Raises `NotFound` for another owner's vector store, `InvalidRequest` for an expired vector store, and
        `StoreError`. While the embeddings server fails, the search uses keywords only.

            recent = Filter("gte", "year", 2024)
            await searcher.search(owner, ["vs_0198…"], ["lease renewal"], limit=5, filters=recent)
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
    """The reason why the ingestion of a file failed. `code` is a code of OpenAI's `last_error` of a file."""

    code: FileErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A vector store (`vs_…`). Times are in seconds since the epoch, and `metadata` is a JSON object.

    `usage_bytes` is the size of its chunks. With `expires_days`, the vector store expires that many days after its last
    use. `expires_at` is this time.
    """

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
    """A file in a vector store, with the state of its ingestion.

    `file_id` is the id of the uploaded file. `created_at` is the time at which a client added the file, in seconds
    since the epoch. `usage_bytes` is the size of the file's chunks. `error` is set if `state` is `failed`.
    """

    file_id: str
    store_id: str
    filename: str
    state: FileState
    created_at: float
    usage_bytes: int
    chunking: Chunking
    attributes: Attributes = field(default_factory=dict)
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
    """Files that a client added in one request (`vsfb_…`). `cancelled`: a client cancelled the batch."""

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


CHUNK_BITS = 20
"""A chunk's number is `file number << CHUNK_BITS | index in the file`. No other column links a chunk to its file."""


class EmbeddingFailed(AntiphonError):
    """The embeddings server returned no vectors. `retry` is true if a retry may succeed. The message contains no text
    of a document."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def model(self) -> str:
        """The name of the embedding model. Vectors of different models are never compared."""

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """Compute one vector per text, normalised to length 1, as little-endian float16. Raises `EmbeddingFailed`."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A chunk of a document. `vector` is little-endian float16, or None when the server computes no embeddings."""

    text: str
    tokens: int
    vector: bytes | None = None


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A file to ingest. `claim` is the unique name of the claim that one worker has on this file. `attempts` counts the
    attempts to ingest this file, including this one."""

    number: int
    claim: str
    owner: str
    store_id: str
    file_id: str
    filename: str
    chunking: Chunking
    attempts: int


class Ingestion(Protocol):
    """The durable queue of files to ingest, and the storage of their chunks.

    A method that changes a file returns False and does nothing when the worker has lost its claim on the file. A claim
    lasts `seconds` by the store's clock. Every method raises `StoreError` when the database fails. No method blocks the
    event loop.
    """

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Claim files that no worker holds, for `seconds`. Each claimed file gets one of the new names in `claims`.

        A call that raises claims no files. Searches no longer find the chunks of a claimed file's earlier attempt.
        """

    async def renew(self, claims: Sequence[str], seconds: float) -> frozenset[str]:
        """Renew these claims for `seconds` from now. Returns the claims that the worker still holds."""

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Release the worker's claim on a file. No worker claims the file again for `pause` seconds. If `attempted` is
        False, the claim does not count as an attempt to ingest the file."""

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[DocumentChunk]) -> bool:
        """Write these chunks. The first chunk gets the index `first` in the file. A search compares the words of a
        query with `title` and with the chunk's text."""

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """Mark the file as completed, so that searches find it. `model` is the embedding model of its vectors, or
        None."""

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """Mark the file as failed."""

    async def waiting(self) -> int:
        """Return the number of files whose ingestion is not finished."""

    async def sweep(self) -> bool:
        """Delete a batch of chunks of deleted files, and of files of expired vector stores. Returns True if more such
        chunks remain."""


@dataclass(frozen=True, slots=True)
class KnownStore:
    """A vector store to search. `number` is its id in the database. `version` changes when its completed files change.

    The database never reuses the `id` or `number` of a deleted vector store.
    """

    id: str
    number: int
    version: int
    expired: bool


@dataclass(frozen=True, slots=True)
class ChunkHit:
    """The number of a matching chunk, and its score. Scores of `match` and of `nearest` are not comparable."""

    chunk: int
    score: float


class ChunkIndex(Protocol):
    """The queries of a search. The database applies filters before it selects the best hits. So the result has the
    maximum number of hits if enough chunks match the filters."""

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """Return the vector stores of `store_ids` that belong to the owner. The database's clock decides `expired`."""

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """Return at most `limit` chunks that contain words of the query, ranked by BM25, best first."""

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """Return the chunks whose vectors are nearest to `vector` (float16, of length 1), best first.

        The search compares only vectors of this model with the same dimension. The score is the cosine similarity.
        """

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """Return these chunks with their text and file, and with the `score` 0. The result omits deleted chunks and
        chunks of other vector stores."""

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Set the last use of these vector stores to the current time, precise to a minute."""
