"""What a search reads: what is alike of the `ChunkIndex` port over the tables of any backend.

Lives here: which stores an owner has, and the texts of chunks. Not here: matching words and comparing vectors, which
each backend does in its own way (`sqlite/chunk_index.py`, `postgres/chunk_index.py`), ranking and fusion (`search/`).

Invariant: only completed files are found. A store is named by its number, which whoever searches was given with its
owner (`known`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from antiphon.engine.ports.indexing import ChunkHit, KnownStore
from antiphon.engine.ports.vector_stores import SearchHit
from antiphon.ids import Clock, now
from antiphon.stores.pages import Row
from antiphon.stores.tables import Tables, milliseconds
from antiphon.stores.vector_stores import SqlVectorStores

KNOWN = """
SELECT id, {number}, version, coalesce(expires_at <= now_ms(), false) FROM vector_stores
WHERE owner = :owner AND id IN (:ids...)
"""


class SqlChunkIndex:
    """`ChunkIndex` but for its two searches, on tables that the caller closes."""

    number: str
    """The column with a store's number."""
    hits_sql: str
    """Selects number, file, file's name, attributes, text and store of the `:chunks` that are in the `:stores`."""

    def __init__(self, tables: Tables, stores: SqlVectorStores, *, clock: Clock = now) -> None:
        """`clock`: the date where the database has none."""
        self._tables = tables
        self._stores = stores
        self._clock = clock

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """The owner's stores of these."""
        named = {"owner": owner, "ids": list(store_ids), "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(KNOWN.format(number=self.number), named)
        return [KnownStore(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, SearchHit]:
        """The chunks' texts with their files; those that are gone, or in another store than these, are left out."""
        named = {"chunks": list(chunks), "stores": [store.number for store in stores]}
        rows = await self._tables.fetch(self.hits_sql, named)
        return {row[0]: SearchHit(row[1], row[2], 0.0, json.loads(row[3]), row[4], row[5]) for row in rows}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now."""
        await self._stores.touch(owner, store_ids)


def chunk_hits(rows: Sequence[Row]) -> list[ChunkHit]:
    """The chunks and scores of rows."""
    return [ChunkHit(row[0], row[1]) for row in rows]
