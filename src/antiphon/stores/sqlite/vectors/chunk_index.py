"""Implements the `ChunkIndex` port for SQLite: the queries of a search in vector stores.

Lives here: full-text search ranked by BM25, the query for the files that match a filter, and the query for vectors. Not
here: the code that all backends share (`stores/vector_stores.py`), comparing vectors (`matrices.py`), writing
(`ingestion.py`).

Invariant: a search returns only chunks of completed files. The statement that ranks the chunks also applies the filter,
so the result has `limit` chunks if that many chunks match.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from antiphon.engine.ports.vector_stores import CHUNK_BITS, ChunkHit, KnownStore
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.sqlite.vectors.sql import ATTRIBUTES, index_table
from antiphon.stores.tables import Tables
from antiphon.stores.vector_stores import SqlChunkIndex, VectorStores, chunk_hits
from antiphon.types.search import Filter, query_terms

if TYPE_CHECKING:
    from antiphon.stores.sqlite.vectors.matrices import Matrices

TITLE_WEIGHT, TEXT_WEIGHT = 2.0, 1.0

_FOUND = "SELECT f.no FROM vector_files f WHERE f.store_no = :store AND f.status = 'completed'"
# MATCH filters by the expression `rowid >> CHUNK_BITS`. SQLite cannot use an expression to look up rows of the index.
# With a plain `rowid`, SQLite would run the word search once per accepted chunk, which takes minutes.
MATCH = f"""
SELECT rowid, -bm25({{table}}, {TITLE_WEIGHT}, {TEXT_WEIGHT}) AS score FROM {{table}}
WHERE {{table}} MATCH :query AND rowid >> {CHUNK_BITS} IN ({_FOUND} AND {{condition}})
ORDER BY score DESC, rowid LIMIT :limit
"""
FILES = f"{_FOUND} AND f.embedding_model = :model AND {{condition}}"
VECTORS = f"""
SELECT c.id, c.vector FROM json_each(:numbers) n
CROSS JOIN chunks c ON c.id >= n.value << {CHUNK_BITS} AND c.id < (n.value + 1) << {CHUNK_BITS}
WHERE c.vector IS NOT NULL
"""
HITS = f"""
SELECT c.id, f.file_id, f.filename, f.attributes, c.text, s.id
FROM json_each(:chunks) w CROSS JOIN chunks c ON c.id = w.value
CROSS JOIN vector_files f ON f.no = c.id >> {CHUNK_BITS} AND f.status = 'completed'
CROSS JOIN vector_stores s ON s.no = f.store_no AND s.no IN (SELECT value FROM json_each(:stores))
"""


class SqliteChunkIndex(SqlChunkIndex):
    """Implements `ChunkIndex` on a SQLite database. `matrix_bytes`: the maximum memory for cached vectors."""

    number = "no"
    hits_sql = HITS

    def __init__(
        self, tables: Tables, stores: VectorStores, *, matrix_bytes: int = 1 << 30, clock: Clock = now
    ) -> None:
        super().__init__(tables, stores, clock=clock)
        self._matrix_bytes = matrix_bytes
        self._matrices: Matrices | None = None

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """Return the chunks that contain words of the query, sorted by BM25 score, best first."""
        terms = query_terms(query)
        if not terms:
            return []
        condition, named = ATTRIBUTES.condition(filters)
        # Terms consist only of letters and digits of any script, so a quoted term cannot contain FTS5 syntax.
        named |= {"query": " OR ".join(f'"{term}"' for term in terms), "store": store.number, "limit": limit}
        sql = MATCH.format(table=index_table(store.id), condition=condition)
        try:
            rows = await self._tables.fetch(sql, named)
        except StoreError as error:
            if isinstance(error.__cause__, sqlite3.OperationalError) and "no such table" in str(error.__cause__):
                return []  # the store was deleted since `known` returned it
            raise
        return chunk_hits(rows)

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """Return the chunks nearest to the vector, best first. The search compares all vectors, so the result is exact.
        See `ChunkIndex.nearest`."""
        return await self.matrices.nearest(store, model, vector, filters, limit)

    @property
    def matrices(self) -> Matrices:
        """The cache of vectors in memory. The first use creates the cache and imports NumPy, which other requests do
        not need."""
        if self._matrices is None:
            from antiphon.stores.sqlite.vectors.matrices import Matrices

            self._matrices = Matrices(self, self._matrix_bytes)
        return self._matrices

    def forget(self, store_id: str) -> None:
        """Drop the vectors of a deleted vector store from memory."""
        if self._matrices is not None:
            self._matrices.forget(store_id)

    async def files(self, store: KnownStore, model: str, filters: Filter | None) -> frozenset[int]:
        """Return the integer keys (file numbers) of the vector store's completed files that have vectors of this model
        and match the filter."""
        condition, named = ATTRIBUTES.condition(filters)
        named |= {"store": store.number, "model": model}
        return frozenset(row[0] for row in await self._tables.fetch(FILES.format(condition=condition), named))

    async def vectors(self, file_numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """Return the chunks of these files as pairs of chunk number and vector (little-endian float16)."""
        rows = await self._tables.fetch(VECTORS, {"numbers": list(file_numbers)})
        return [(row[0], row[1]) for row in rows]
