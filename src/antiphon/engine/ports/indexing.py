"""Ports of indexing: how files become chunks, and what a search reads of them.

Lives here: the ports `Ingestion` (the durable work of making chunks), `ChunkIndex` (what a search reads) and
`Embedder`. Not here: what clients see of stores and files (`vector_stores.py`), SQL, extraction, ranking.

A *file number* names one ingestion of one file into one store; the numbers of its chunks begin with it. Invariant: what
a file number's chunks hold never changes once the file is completed: whatever is ingested again gets another number.
So a cache of vectors is right when it holds the right file numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.vector_stores import Chunking, FileError, FoundChunk
from antiphon.errors import AntiphonError
from antiphon.types.search import Filter

CHUNK_BITS = 20
"""A chunk's number is `file number << CHUNK_BITS | place in the file`, which is all that links the two."""


class EmbeddingFailed(AntiphonError):
    """The embeddings server gave no vectors. `retry`: it may do so later. The message holds no text of a document."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def model(self) -> str:
        """Names the vectors' space: vectors of another model are never compared with these."""

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """One vector per text, of length 1, as little-endian float16. Raises `EmbeddingFailed`."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A piece of a document: `vector` is float16, or None without embeddings."""

    text: str
    tokens: int
    vector: bytes | None = None


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A file whose chunks are to be made, held under `claim`; `attempts` counts this one."""

    number: int
    claim: str
    owner: str
    store_id: str
    file_id: str
    filename: str
    chunking: Chunking
    attempts: int


class Ingestion(Protocol):
    """The work of ingestion. A method that changes a file does nothing, and says so, when its claim is lost. Claims
    last so many seconds by the store's own clock.

    Every method raises `StoreError` when the database cannot do it; none blocks the event loop.
    """

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Take files that nobody holds and hold them for so long, one under each of these new names; all of them or,
        with an error, none.

        What an earlier attempt left behind is not found any more.
        """

    async def renew(self, claims: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold these for so many seconds from now; those that are held still."""

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Give a file back; nobody takes it up for `pause` seconds. `attempted`: whether the attempt counts."""

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[DocumentChunk]) -> bool:
        """Write chunks from place `first` on."""

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """The file is ingested and can be found; with vectors of this model, or none."""

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """The file cannot be ingested."""

    async def waiting(self) -> int:
        """How many files are in progress."""

    async def sweep(self) -> bool:
        """Clear up a piece: chunks of files that are gone, files of expired stores. Whether there is more to do."""


@dataclass(frozen=True, slots=True)
class KnownStore:
    """A store to search: `number` is the database's, `version` another one whenever other files are completed.

    Neither an id nor a number is ever given out again, not even when its store is gone.
    """

    id: str
    number: int
    version: int
    expired: bool


@dataclass(frozen=True, slots=True)
class ChunkHit:
    """A chunk that fits, by its number; `score` is its side's own (higher is better)."""

    chunk: int
    score: float


class ChunkIndex(Protocol):
    """What a search reads. Filters are part of every reading: nothing is filtered after the best were cut."""

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """The owner's stores of these, as of now by the store's own clock."""

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """The chunks that hold words of the query, best first, by BM25."""

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """The chunks whose vectors of this model are nearest to the vector (float16, of length 1), best first; the
        score is the cosine. None of another width."""

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """The chunks' texts with their files (`score` 0); those that are gone, or not in these stores, are left out."""

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now (to a minute)."""
