"""Searches vectors in memory: one matrix per store, compared with the query in one operation.

Lives here: the matrices, their synchronization with the database, and the comparison. Not here: creating vectors
(`Embedder`) and reading them (`chunk_index.py`). SQLite has no vector index, so this process compares the vectors.

A matrix holds the vectors of a set of files. When the store's version differs from that of the last search, the matrix
reads the list of files. It drops the rows of removed files and reads those of new ones. This is sufficient, because the
chunks of a file number never change. Empty matrices are not kept. A deleted store's matrix is dropped (`forget`), and
when all together are too large, those unused for longest are dropped. The key of a matrix is the store's id, which is
never reused.

Invariant: a search compares every vector of every accepted file. So it is exact, and a filter costs no recall.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from antiphon.engine.ports.indexing import CHUNK_BITS, ChunkHit, KnownStore
from antiphon.engine.waiting import SEARCH
from antiphon.single_threaded_numpy import np
from antiphon.types.search import Filter

if TYPE_CHECKING:
    from antiphon.stores.sqlite.vectors.chunk_index import SqliteChunkIndex

_FILES_PER_READ = 64
_ENTRY_BYTES = 1 << 10
"""The overhead of a matrix in bytes, so that many small ones count too."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Key = tuple[str, str]


@dataclass(eq=False)
class _Matrix:
    """The row `i` of `vectors` belongs to the chunk `chunks[i]`; `files` are the files of all rows."""

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
    """Exact search by cosine. `max_bytes`: the limit for all matrices together, except the one in use."""

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
        """Drop a deleted store's matrices. A running search keeps the arrays that it began with."""
        for key in [key for key in self._matrices if key[0] == store_id]:
            self._drop(key)

    async def nearest(
        self, store: KnownStore, model: str, query: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """The chunks nearest to the vector (float16), best first. The score is the cosine."""
        allowed = None if filters is None else await self._source.files(store, model, filters)
        if allowed is not None and not allowed:
            return []
        chunks, vectors = await self._current(store, model)
        vector = np.frombuffer(query, "<f2").astype(np.float32)
        if not len(chunks) or vectors.shape[1] != len(vector):
            return []
        return await SEARCH.run(_nearest, chunks, vectors, vector, allowed, limit)

    async def _current(self, store: KnownStore, model: str) -> tuple[Numbers, Floats]:
        """All rows of the store, at the version that the search knows."""
        key = (store.id, model)
        matrix = self._matrices.get(key)
        if matrix is None:
            matrix = self._matrices[key] = _Matrix()
            self._held += matrix.counted
        self._matrices.move_to_end(key)
        async with matrix.lock:  # one caller reads the new rows, the others wait for it
            try:
                if matrix.version != store.version:
                    await self._follow(matrix, await self._source.files(store, model, None))
                    # The version was read before the files: at worst the next search reads them once more.
                    matrix.version = store.version
            finally:
                self._count(key, matrix)
            # A later change creates new arrays: these two belong together and never change.
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
        # Vectors of different widths cannot be compared: the server behind the model's name has changed.
        parts = [(numbers, block) for numbers, block in parts if block.shape[1] == width]
        if parts:
            if not len(chunks):
                vectors = np.empty((0, width), np.float32)
            chunks = np.concatenate([chunks, *(numbers for numbers, _ in parts)])
            vectors = np.concatenate([vectors, *(block for _, block in parts)])
        matrix.files, matrix.chunks, matrix.vectors = wanted, chunks, vectors

    def _count(self, used: _Key, matrix: _Matrix) -> None:
        """Count the bytes of the matrix in use, and drop others to stay under the limit."""
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
        # A small selection is copied and compared alone. For a large one, all rows are compared, and then selected.
        scores = vectors[fits] @ query if len(fits) * 4 < len(chunks) else (vectors @ query)[fits]
        chunks = chunks[fits]
    if len(scores) > limit:
        best = np.argpartition(scores, -limit)[-limit:]
        chunks, scores = chunks[best], scores[best]
    order = np.lexsort((chunks, -scores))
    return [ChunkHit(int(chunks[place]), float(scores[place])) for place in order]
