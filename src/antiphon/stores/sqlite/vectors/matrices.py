"""Searches vectors in memory. NumPy multiplies the query's vector with a matrix of the vector store's vectors.

Lives here: the matrices, their synchronization with the database, and the comparison of vectors. Not here: creating
vectors (`Embedder`), reading vectors from the database (`chunk_index.py`). SQLite has no vector index, so this process
compares the vectors.

A matrix contains the vectors of all files of a vector store that one embedding model created. When the vector store's
version has changed since the last search, the search updates the matrix. The update drops the rows of removed files and
reads the rows of new files. The other rows stay valid: a file that is ingested again gets a new integer key, so the
chunks of a key never change. The cache drops the matrices of deleted vector stores (`forget`) and empty matrices. Above
the memory limit, the cache drops the least recently used matrices. The key of a matrix consists of the vector store's
id and the model. A vector store's id is never reused.

Invariant: a search compares every vector of every file that matches the filter. So a vector search is exact, and a
filter costs no recall.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from antiphon.engine.ports.vector_stores import CHUNK_BITS, ChunkHit, KnownStore
from antiphon.engine.waiting import SEARCH
from antiphon.single_threaded_numpy import np
from antiphon.types.search import Filter

if TYPE_CHECKING:
    from antiphon.stores.sqlite.vectors.chunk_index import SqliteChunkIndex

_FILES_PER_READ = 64
_ENTRY_BYTES = 1 << 10
"""The assumed overhead of a matrix in bytes, so that many small matrices also count towards the memory limit."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Key = tuple[str, str]


@dataclass(eq=False)
class _Matrix:
    """The vectors of one vector store and model. Row `i` of `vectors` is the vector of chunk number `chunks[i]`.
    `files`: the integer keys of all files whose vectors are in the matrix."""

    version: int = -1
    files: frozenset[int] = frozenset()
    chunks: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    vectors: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    counted: int = _ENTRY_BYTES

    @property
    def size(self) -> int:
        return int(self.vectors.nbytes + self.chunks.nbytes) + _ENTRY_BYTES


class Matrices:
    """Searches by cosine similarity in cached matrices. `max_bytes`: the memory limit of all matrices together. The
    matrix of the current search stays in memory even if it exceeds `max_bytes`."""

    def __init__(self, source: SqliteChunkIndex, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._matrices: OrderedDict[_Key, _Matrix] = OrderedDict()
        self._held = 0

    @property
    def count(self) -> int:
        """The number of matrices in memory."""
        return len(self._matrices)

    def forget(self, store_id: str) -> None:
        """Drop a deleted vector store's matrices. A running search keeps its arrays until it ends."""
        for key in [key for key in self._matrices if key[0] == store_id]:
            self._drop(key)

    async def nearest(
        self, store: KnownStore, model: str, query: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """Return the chunks nearest to the vector, best first. `query`: a float16 vector of length 1. The score is the
        cosine similarity."""
        allowed = None if filters is None else await self._source.files(store, model, filters)
        if allowed is not None and not allowed:
            return []
        chunks, vectors = await self._current(store, model)
        vector = np.frombuffer(query, "<f2").astype(np.float32)
        if not len(chunks) or vectors.shape[1] != len(vector):
            return []
        return await SEARCH.run(_nearest, chunks, vectors, vector, allowed, limit)

    async def _current(self, store: KnownStore, model: str) -> tuple[Numbers, Floats]:
        """Return the chunk numbers and vectors of the vector store. If the cached matrix is older than `store.version`,
        update it first."""
        key = (store.id, model)
        matrix = self._matrices.get(key)
        if matrix is None:
            matrix = self._matrices[key] = _Matrix()
            self._held += matrix.counted
        self._matrices.move_to_end(key)
        async with matrix.lock:  # one search updates the matrix, and concurrent searches wait
            try:
                if matrix.version != store.version:
                    await self._follow(matrix, await self._source.files(store, model, None))
                    # The search read the version before the list of files. If the store changed after the search read
                    # its version, the next search reads the list of files again.
                    matrix.version = store.version
            finally:
                self._count(key, matrix)
            # An update replaces both arrays and never modifies them, so the caller may use the returned pair without
            # the lock.
            return matrix.chunks, matrix.vectors

    async def _follow(self, matrix: _Matrix, wanted: frozenset[int]) -> None:
        chunks, vectors = matrix.chunks, matrix.vectors
        if not matrix.files <= wanted:
            kept = np.isin(chunks >> CHUNK_BITS, np.fromiter(wanted, np.int64, len(wanted)))
            chunks, vectors = chunks[kept], vectors[kept]
        parts = []
        new = sorted(wanted - matrix.files)
        for start in range(0, len(new), _FILES_PER_READ):
            rows = await self._source.vectors(new[start : start + _FILES_PER_READ])
            if rows:
                parts.append(await SEARCH.run(_rows, rows))
        width = vectors.shape[1] or (parts[0][1].shape[1] if parts else 0)
        # Skip vectors of another width, because they cannot be compared. Another model must have created these vectors
        # under the same model name.
        parts = [(numbers, block) for numbers, block in parts if block.shape[1] == width]
        if parts:
            if not len(chunks):
                vectors = np.empty((0, width), np.float32)
            chunks = np.concatenate([chunks, *(numbers for numbers, _ in parts)])
            vectors = np.concatenate([vectors, *(block for _, block in parts)])
        matrix.files, matrix.chunks, matrix.vectors = wanted, chunks, vectors

    def _count(self, used: _Key, matrix: _Matrix) -> None:
        """Update the total memory after a search used `matrix`, and drop the least recently used matrices while the
        total exceeds the memory limit."""
        if self._matrices.get(used) is not matrix:
            return  # dropped meanwhile
        if not len(matrix.chunks):
            self._drop(used)
            return
        self._held += matrix.size - matrix.counted
        matrix.counted = matrix.size
        while self._held > self._max_bytes and (oldest := next(iter(self._matrices))) != used:
            self._drop(oldest)

    def _drop(self, key: _Key) -> None:
        self._held -= self._matrices.pop(key).counted


def _rows(rows: list[tuple[int, bytes]]) -> tuple[Numbers, Floats]:
    width = len(rows[0][1])
    rows = [row for row in rows if len(row[1]) == width]
    numbers = np.fromiter((number for number, _ in rows), np.int64, len(rows))
    block = np.frombuffer(b"".join(vector for _, vector in rows), "<f2").astype(np.float32)
    return numbers, block.reshape(len(rows), width // 2)


def _nearest(
    chunks: Numbers, vectors: Floats, query: Floats, allowed: frozenset[int] | None, limit: int
) -> list[ChunkHit]:
    if allowed is None:
        scores = vectors @ query
    else:
        fits = np.flatnonzero(np.isin(chunks >> CHUNK_BITS, np.fromiter(allowed, np.int64, len(allowed))))
        # If less than a quarter of the rows match the filter, copying these rows is cheaper. For more matching rows,
        # compare all rows, then select the scores of the matching ones.
        scores = vectors[fits] @ query if len(fits) * 4 < len(chunks) else (vectors @ query)[fits]
        chunks = chunks[fits]
    if len(scores) > limit:
        best = np.argpartition(scores, -limit)[-limit:]
        chunks, scores = chunks[best], scores[best]
    order = np.lexsort((chunks, -scores))
    return [ChunkHit(int(chunks[place]), float(scores[place])) for place in order]
