"""Vector search in memory: one matrix per store, compared with the query at once.

Lives here: the matrices, how they follow the database, and the comparison. Not here: how vectors are made (`Embedder`)
and read (`chunk_index.py`). SQLite has no index of vectors, so this process compares them itself.

A matrix holds the vectors of the files it has. When the store has another version than at the last search, it is told
which files there are, drops the rows of those that are gone and reads those that are new; it needs no more than this to
be right, since what a file number's chunks hold never changes. A matrix without rows is not kept, that of a store which
is deleted is dropped (`forget`), and those that were not used for longest are dropped when all together are too large.

Matrices are known by the store's id, which no other store ever has.

Invariant: a search compares every vector of every allowed file: it is exact, and a filter costs nothing in recall.
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
"""What a matrix takes besides its numbers, so that many small ones are counted too."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Key = tuple[str, str]


@dataclass(eq=False)
class _Matrix:
    """Rows of `vectors` belong to the chunks in `chunks`, of the files in `files`."""

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
    """Exact search by cosine. `max_bytes`: of all matrices together, but for the one in use."""

    def __init__(self, source: SqliteChunkIndex, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._matrices: OrderedDict[_Key, _Matrix] = OrderedDict()
        self._held = 0

    @property
    def count(self) -> int:
        """How many matrices are kept."""
        return len(self._matrices)

    def forget(self, store_id: str) -> None:
        """The store is deleted: nothing of it is kept. A search that is under way still has what it began with."""
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
        """All rows of the store, as of the version that the search knows."""
        key = (store.id, model)
        matrix = self._matrices.get(key)
        if matrix is None:
            matrix = self._matrices[key] = _Matrix()
            self._held += matrix.counted
        self._matrices.move_to_end(key)
        async with matrix.lock:  # one reads what is new, the others wait for it
            try:
                if matrix.version != store.version:
                    await self._follow(matrix, await self._source.files(store, model, None))
                    # The version was read before the files: at worst they are looked at once more.
                    matrix.version = store.version
            finally:
                self._count(key, matrix)
            # A later change makes new arrays: these two belong together and stay as they are.
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
        # Vectors of another width cannot be compared: the server behind the model's name was changed.
        parts = [(numbers, block) for numbers, block in parts if block.shape[1] == width]
        if parts:
            if not len(chunks):
                vectors = np.empty((0, width), np.float32)
            chunks = np.concatenate([chunks, *(numbers for numbers, _ in parts)])
            vectors = np.concatenate([vectors, *(block for _, block in parts)])
        matrix.files, matrix.chunks, matrix.vectors = wanted, chunks, vectors

    def _count(self, used: _Key, matrix: _Matrix) -> None:
        """Count what the matrix in use takes now, and make room."""
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
        # Few rows are copied and compared alone; of many, all are compared and then chosen from.
        scores = vectors[fits] @ query if len(fits) * 4 < len(chunks) else (vectors @ query)[fits]
        chunks = chunks[fits]
    if len(scores) > limit:
        best = np.argpartition(scores, -limit)[-limit:]
        chunks, scores = chunks[best], scores[best]
    order = np.lexsort((chunks, -scores))
    return [ChunkHit(int(chunks[place]), float(scores[place])) for place in order]
