"""Defines the ports of indexing: how workers turn files into chunks, and how a search reads the chunks.

Lives here: the ports `Ingestion` (the durable queue of files to chunk), `ChunkIndex` (the reads of a search) and
`Embedder`. Not here: the API's view of stores and files (`vector_stores.py`), SQL, extraction, ranking.

A *file number* names one ingestion of one file into one store. The numbers of its chunks begin with it. Invariant: the
chunks of a file number never change once the file is completed. A file that is ingested again gets another number.
So a cache of vectors is valid when it holds the right file numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.vector_stores import Chunking, FileError, FoundChunk
from antiphon.errors import AntiphonError
from antiphon.types.search import Filter

CHUNK_BITS = 20
"""A chunk's number is `file number << CHUNK_BITS | place in the file`. Nothing else links a chunk to its file."""


class EmbeddingFailed(AntiphonError):
    """The embeddings server returned no vectors. `retry`: a retry may succeed. The message quotes no document."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def model(self) -> str:
        """The name of the embedding model. Vectors of different models are never compared."""

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """Compute one vector per text, of length 1, as little-endian float16. Raises `EmbeddingFailed`."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A piece of a document. `vector` is float16, or None without embeddings."""

    text: str
    tokens: int
    vector: bytes | None = None


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A file to ingest. A worker holds it under the name `claim`. `attempts` includes this attempt."""

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

    A method that changes a file returns False and does nothing when the worker has lost its claim. A claim lasts
    `seconds` by the store's clock. Every method raises `StoreError` when the database fails. No method blocks the event
    loop.
    """

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Claim files that no worker holds, at most one under each of these new names, for `seconds`.

        With an error it claims none. A search no longer finds the chunks of an earlier attempt.
        """

    async def renew(self, claims: Sequence[str], seconds: float) -> frozenset[str]:
        """Renew these claims for `seconds` from now. Returns the claims that still hold."""

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Release a file. No worker claims it for `pause` seconds. `attempted`: whether the attempt counts."""

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[DocumentChunk]) -> bool:
        """Write these chunks, from place `first` in the file on."""

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """Mark the file as completed, so that searches find it. `model` made its vectors. None: it has no vectors."""

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """Mark the file as failed."""

    async def waiting(self) -> int:
        """The number of files in progress."""

    async def sweep(self) -> bool:
        """Delete a batch of chunks of deleted files, and of files of expired stores. Returns whether more remain."""


@dataclass(frozen=True, slots=True)
class KnownStore:
    """A store to search. `number` is its number in the database. `version` changes when its completed files change.

    Ids and numbers are never reused, not even after the store is deleted.
    """

    id: str
    number: int
    version: int
    expired: bool


@dataclass(frozen=True, slots=True)
class ChunkHit:
    """A chunk that matches, by its number. Scores of the word search and of the vector search are not comparable."""

    chunk: int
    score: float


class ChunkIndex(Protocol):
    """The reads of a search. The store applies filters in the query itself, never after it has cut the best hits."""

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """Those of these stores that belong to the owner, as of now by the store's clock."""

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """The chunks that contain words of the query, best first, by BM25."""

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """The chunks whose vectors of this model are nearest to the vector (float16, of length 1), best first.

        The score is the cosine. Vectors of another width are left out.
        """

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """The chunks' texts with their files (`score` 0). Chunks that are deleted or in other stores are left out."""

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record that the stores were used now, precise to a minute."""
