"""What a search reads: the `ChunkIndex` port over PostgreSQL.

Lives here: matching words with their rank, finding the nearest vectors, texts. Not here: what is a word
(`vector_words.py`), ranking and fusion (`search/`), how any of it was written (`ingestion.py`), which stores have an
index of vectors (`vector_indexes.py`).

Up to `exact` vectors that may be found (of completed files that a filter lets through) are compared one by one: that
finds the nearest, however few they are. More are looked for in the store's index, which goes on through its graph until
it has found as many as are asked for; where it gives up before, and where there is no index yet, they are compared one
by one all the same.

Invariant: only completed files are found, and a filter is part of the statement that ranks. A store is named by its
number, which whoever searches was given with its owner (`known`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.indexing import CHUNK_BITS, ChunkHit, KnownStore
from antiphon.engine.ports.vector_stores import SearchHit
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.vector_filters import filter_condition
from antiphon.stores.postgres.vector_indexes import VectorIndexes, index_name
from antiphon.stores.postgres.vector_table import VectorTable, vector_text, width_of
from antiphon.stores.postgres.vector_words import query_words
from antiphon.stores.vector_stores import SqlVectorStores
from antiphon.types.search import Filter

# BM25 takes a word that most documents have for one that says nothing. In a store of three chunks that is every word,
# and all scores would be nothing. So each store counts as if it had some more, which hold no word of any query.
_MORE_CHUNKS, _MORE_WORDS = 16, 1_600
_K1, _B = 1.2, 0.75

KNOWN = """
SELECT id, number, version, coalesce(expires_at <= unix_ms(), false) FROM vector_stores
WHERE owner = $1 AND id = ANY($2::text[])
"""
_CHUNK = f"(c.file_number << {CHUNK_BITS}) | c.place"
# $1 the store, $2 numbers of words, $3 their entries in the index, $4 their counts, $5 how many are asked for. How rare
# a word is, is a matter of the whole store, whatever the filter. Each entry is looked up by itself, and in
# the index: while tables are small, or new to it, the planner takes comparing every chunk with every entry for cheap.
MATCH_SETTINGS = "SET LOCAL enable_seqscan = off"
MATCH = f"""
WITH entered AS MATERIALIZED (
  SELECT w.number AS word, w.count, c.file_number, c.place, c.length
  FROM unnest($2::integer[], $3::text[], $4::float8[]) AS w (number, entry, count)
  CROSS JOIN LATERAL (
    SELECT file_number, place, length FROM chunks WHERE words @> ARRAY[w.entry] OFFSET 0
  ) AS c
), held AS MATERIALIZED (
  SELECT e.* FROM entered e JOIN vector_files f ON f.number = e.file_number AND f.status = 'completed'
), size AS (
  SELECT sum(chunks) + {_MORE_CHUNKS}.0::float8 AS chunks, sum(words) + {_MORE_WORDS}.0::float8 AS words
  FROM vector_files WHERE store_number = $1 AND status = 'completed'
), rare AS MATERIALIZED (
  SELECT word, greatest(ln((size.chunks - count(*) + 0.5) / (count(*) + 0.5)), 1e-6) AS weight
  FROM held, size GROUP BY word, size.chunks
)
SELECT {_CHUNK} AS chunk,
       sum(rare.weight * c.count * {_K1 + 1}::float8
         / (c.count + {_K1}::float8 * ({1 - _B} + {_B}::float8 * c.length * size.chunks / size.words))) AS score
FROM held c JOIN rare USING (word) CROSS JOIN size
WHERE c.file_number IN (SELECT f.number FROM vector_files f WHERE f.store_number = $1 AND {{condition}})
GROUP BY c.file_number, c.place ORDER BY score DESC, chunk LIMIT $5
"""

# $1 the store, $2 the model, $3 the vector's width, $4 the vector, $5 how many are asked for, $6 the most that are
# compared. The first row says how many there are to compare.
_FITS = "f.store_number = $1 AND f.status = 'completed' AND f.embedding_model = $2 AND f.vector_width = $3"
EXACT = f"""
WITH fits AS MATERIALIZED (
  SELECT f.number, f.chunks FROM vector_files f WHERE {_FITS} AND {{condition}}
), size AS MATERIALIZED (
  SELECT coalesce(sum(chunks), 0)::bigint AS chunks FROM fits
), nearest AS (
  SELECT {_CHUNK} AS chunk, -(c.vector <#> $4::text::halfvec) AS score
  FROM fits JOIN chunk_vectors c ON c.file_number = fits.number AND c.width = $3
  WHERE (SELECT chunks FROM size) <= $6::bigint
  ORDER BY (c.vector <#> $4::text::halfvec) + 0, chunk LIMIT $5
)
SELECT chunks AS chunk, NULL::float8 AS score FROM size UNION ALL SELECT chunk, score FROM nearest
ORDER BY score DESC NULLS FIRST, chunk
"""
# The store's number and the width stand in the text, so that the planner sees which index is meant. Whether a vector
# may be found is looked up for each that the graph gives, one by one: a join would lose its order.
APPROXIMATE = f"""
SELECT {_CHUNK} AS chunk, -(c.vector::halfvec({{width}}) <#> $4::text::halfvec({{width}})) AS score
FROM chunk_vectors c
WHERE c.store_number = {{store}} AND c.width = {{width}}
  AND (SELECT true FROM vector_files f WHERE f.number = c.file_number AND {_FITS} AND {{condition}})
ORDER BY c.vector::halfvec({{width}}) <#> $4::text::halfvec({{width}}) LIMIT $5
"""
INDEXED = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
_LEAST_LOOKED_AT = 100
_MOST_LOOKED_AT = 1_000
SEARCH_SETTINGS = """
SET LOCAL hnsw.ef_search = {looked_at};
SET LOCAL hnsw.iterative_scan = strict_order;
SET LOCAL hnsw.max_scan_tuples = 60000;
SET LOCAL hnsw.scan_mem_multiplier = 8;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_sort = off
"""
_NO_LIMIT = 1 << 62

HITS = f"""
SELECT {_CHUNK} AS chunk, f.file_id, f.filename, f.attributes, c.text, s.id
FROM unnest($2::bigint[]) AS w
JOIN chunks c ON c.file_number = w >> {CHUNK_BITS} AND c.place = w & {(1 << CHUNK_BITS) - 1}
JOIN vector_files f ON f.number = c.file_number AND f.status = 'completed' AND f.store_number = ANY($1::bigint[])
JOIN vector_stores s ON s.number = f.store_number AND s.owner IS NOT NULL
"""


class PostgresChunkIndex:
    """`ChunkIndex` on a database that is somebody else's to close."""

    def __init__(self, database: Database, stores: SqlVectorStores, table: VectorTable, indexes: VectorIndexes) -> None:
        self._database = database
        self._stores = stores
        self._table = table
        self._indexes = indexes

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """The owner's stores of these."""
        rows = await self._database.fetch(KNOWN, owner, list(store_ids))
        return [KnownStore(found, number, version, expired) for found, number, version, expired in rows]

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """The chunks that hold words of the query, best first, by BM25."""
        numbers, entries, counts = query_words(store.number, query)
        if not entries:
            return []
        condition, parameters = filter_condition(filters, store.number, 6)
        sql = MATCH.format(condition=condition)

        async def work(connection: Connection) -> list[Record]:
            await connection.execute(MATCH_SETTINGS)
            given = (store.number, numbers, entries, counts, limit, *parameters)
            rows: list[Record] = await connection.fetch(sql, *given)
            return rows

        return _hits(await self._database.transaction(work))

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """The chunks nearest to the vector, best first; see `ChunkIndex.nearest`."""
        await self._table.there()
        width = width_of(vector)
        given = (store.number, model, width, vector_text(vector), limit)
        condition, parameters = filter_condition(filters, store.number, 7)
        exact = EXACT.format(condition=condition)
        size, *found = await self._database.fetch(exact, *given, self._indexes.exact, *parameters)
        if size["chunk"] <= self._indexes.exact:
            return _hits(found)
        rows = await self._by_index(store, width, filters, given)
        if len(rows) < limit:
            _, *rows = await self._database.fetch(exact, *given, _NO_LIMIT, *parameters)
        return _hits(rows)

    async def _by_index(
        self, store: KnownStore, width: int, filters: Filter | None, given: tuple[Any, ...]
    ) -> list[Record]:
        """What the store's index finds; nothing, where there is none."""
        valid = await self._database.fetch(INDEXED, index_name(store.number, width))
        if not (valid and valid[0][0]):
            return []
        condition, parameters = filter_condition(filters, store.number, 6)
        sql = APPROXIMATE.format(condition=condition, store=store.number, width=width)
        settings = SEARCH_SETTINGS.format(looked_at=min(max(given[-1], _LEAST_LOOKED_AT), _MOST_LOOKED_AT))

        async def work(connection: Connection) -> list[Record]:
            await connection.execute(settings)
            rows: list[Record] = await connection.fetch(sql, *given, *parameters)
            return rows

        return await self._database.transaction(work)

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, SearchHit]:
        """The chunks' texts with their files; those that are gone, or in another store than these, are left out."""
        rows = await self._database.fetch(HITS, [store.number for store in stores], list(chunks))
        return {
            chunk: SearchHit(file_id, filename, 0.0, json.loads(attributes), text, store_id)
            for chunk, file_id, filename, attributes, text, store_id in rows
        }

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now."""
        await self._stores.touch(owner, store_ids)


def _hits(rows: Sequence[Record]) -> list[ChunkHit]:
    return [ChunkHit(row["chunk"], row["score"]) for row in rows]
