"""Implements the `ChunkIndex` port for PostgreSQL: the queries of a search in vector stores.

Lives here: word search with BM25 ranking, and vector search. Not here: the code that all backends share
(`stores/vector_stores.py`), the definition of a word (`words.py`), writing chunks (`ingestion.py`), vector indexes
(`table.py`).

A vector search considers the vectors of completed files that the filter accepts. If at most `exact` vectors qualify,
the SQL compares each of them with the query's vector. If more vectors qualify, the SQL searches the vector store's HNSW
index. The search follows the graph of the index until it has enough hits. If the index returns too few hits, or does
not exist yet, a second query compares all vectors.

Invariant: a search finds only completed files. The statement that ranks the chunks also applies the filter, so the
result has `limit` chunks if that many chunks match.
"""

from __future__ import annotations

from antiphon.engine.ports.vector_stores import CHUNK_BITS, ChunkHit, KnownStore
from antiphon.stores.postgres.vectors.sql import ATTRIBUTES
from antiphon.stores.postgres.vectors.table import VectorIndexes, VectorTable, index_name, vector_text, width_of
from antiphon.stores.postgres.vectors.words import query_words
from antiphon.stores.tables import Row, Statement, Tables
from antiphon.stores.vector_stores import SqlChunkIndex, VectorStores, chunk_hits
from antiphon.types.search import Filter

# BM25 gives no weight to a word that most chunks contain. In a store of three chunks, almost every word is in most
# chunks, so all scores would be zero. So the formula adds 16 imaginary chunks per store, which contain no word of any
# query.
_MORE_CHUNKS, _MORE_WORDS = 16, 1_600
_K1, _B = 1.2, 0.75

_CHUNK = f"(c.file_number << {CHUNK_BITS}) | c.place"
# The weight of a word depends on all completed files of the store, also on files that the filter excludes. The query
# looks up each entry separately in the index. Without `MATCH_SETTINGS` and `OFFSET 0`, the planner compares every chunk
# with every entry while tables are small or new.
MATCH_SETTINGS = "SET LOCAL enable_seqscan = off"
MATCH = f"""
WITH entered AS MATERIALIZED (
  SELECT w.number AS word, w.count, c.file_number, c.place, c.length
  FROM unnest(:words::integer[], :entries::text[], :counts::float8[]) AS w (number, entry, count)
  CROSS JOIN LATERAL (
    SELECT file_number, place, length FROM chunks WHERE words @> ARRAY[w.entry] OFFSET 0
  ) AS c
), held AS MATERIALIZED (
  SELECT e.* FROM entered e JOIN vector_files f ON f.number = e.file_number AND f.status = 'completed'
), size AS (
  SELECT sum(chunks) + {_MORE_CHUNKS}.0::float8 AS chunks, sum(words) + {_MORE_WORDS}.0::float8 AS words
  FROM vector_files WHERE store_number = :store AND status = 'completed'
), rare AS MATERIALIZED (
  SELECT word, greatest(ln((size.chunks - count(*) + 0.5) / (count(*) + 0.5)), 1e-6) AS weight
  FROM held, size GROUP BY word, size.chunks
)
SELECT {_CHUNK} AS chunk,
       sum(rare.weight * c.count * {_K1 + 1}::float8
         / (c.count + {_K1}::float8 * ({1 - _B} + {_B}::float8 * c.length * size.chunks / size.words))) AS score
FROM held c JOIN rare USING (word) CROSS JOIN size
WHERE c.file_number IN (SELECT f.number FROM vector_files f WHERE f.store_number = :store AND {{condition}})
GROUP BY c.file_number, c.place ORDER BY score DESC, chunk LIMIT :limit
"""

# The first row of the result is the number of vectors that qualify. If this number exceeds `:most`, no other row
# follows.
_FITS = "f.store_number = :store AND f.status = 'completed' AND f.embedding_model = :model AND f.vector_width = :width"
EXACT = f"""
WITH fits AS MATERIALIZED (
  SELECT f.number, f.chunks FROM vector_files f WHERE {_FITS} AND {{condition}}
), size AS MATERIALIZED (
  SELECT coalesce(sum(chunks), 0)::bigint AS chunks FROM fits
), nearest AS (
  SELECT {_CHUNK} AS chunk, -(c.vector <#> :vector::text::halfvec) AS score
  FROM fits JOIN chunk_vectors c ON c.file_number = fits.number AND c.width = :width
  WHERE (SELECT chunks FROM size) <= :most::bigint
  ORDER BY (c.vector <#> :vector::text::halfvec) + 0, chunk LIMIT :limit
)
SELECT chunks AS chunk, NULL::float8 AS score FROM size UNION ALL SELECT chunk, score FROM nearest
ORDER BY score DESC NULLS FIRST, chunk
"""
# The store's number and the width are literals in the SQL, so that the planner finds the partial index. A subquery
# checks the filter for each vector that the graph yields, because a join would lose the order of the graph.
APPROXIMATE = f"""
SELECT {_CHUNK} AS chunk, -(c.vector::halfvec({{size}}) <#> :vector::text::halfvec({{size}})) AS score
FROM chunk_vectors c
WHERE c.store_number = {{number}} AND c.width = {{size}}
  AND (SELECT true FROM vector_files f WHERE f.number = c.file_number AND {_FITS} AND {{condition}})
ORDER BY c.vector::halfvec({{size}}) <#> :vector::text::halfvec({{size}}) LIMIT :limit
"""
INDEXED = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
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
FROM unnest(:chunks::bigint[]) AS w
JOIN chunks c ON c.file_number = w >> {CHUNK_BITS} AND c.place = w & {(1 << CHUNK_BITS) - 1}
JOIN vector_files f ON f.number = c.file_number AND f.status = 'completed' AND f.store_number = ANY(:stores::bigint[])
JOIN vector_stores s ON s.number = f.store_number AND s.owner IS NOT NULL
"""


class PostgresChunkIndex(SqlChunkIndex):
    """Implements `ChunkIndex` for a PostgreSQL database."""

    number = "number"
    hits_sql = HITS

    def __init__(self, tables: Tables, stores: VectorStores, table: VectorTable, indexes: VectorIndexes) -> None:
        super().__init__(tables, stores)
        self._table = table
        self._indexes = indexes

    async def match(self, store: KnownStore, query: str, filters: Filter | None, limit: int) -> list[ChunkHit]:
        """Return the chunks that contain words of the query, ranked by BM25, best first."""
        numbers, entries, counts = query_words(store.number, query)
        if not entries:
            return []
        condition, named = ATTRIBUTES.condition(filters)
        named |= {"store": store.number, "words": numbers, "entries": entries, "counts": counts, "limit": limit}
        return chunk_hits(await self._with(MATCH_SETTINGS, MATCH.format(condition=condition), named))

    async def nearest(
        self, store: KnownStore, model: str, vector: bytes, filters: Filter | None, limit: int
    ) -> list[ChunkHit]:
        """Return the chunks whose vectors are nearest to `vector`, best first. See `ChunkIndex.nearest`."""
        await self._table.there()
        width, most = width_of(vector), self._indexes.exact
        condition, named = ATTRIBUTES.condition(filters)
        named |= {"store": store.number, "model": model, "width": width, "vector": vector_text(vector), "limit": limit}
        exact = EXACT.format(condition=condition)
        size, *found = await self._tables.fetch(exact, named | {"most": most})
        if size["chunk"] <= most:
            return chunk_hits(found)
        valid = await self._tables.fetch(INDEXED, {"name": index_name(store.number, width)})
        if valid and valid[0][0]:
            sql = APPROXIMATE.format(condition=condition, number=store.number, size=width)
            settings = SEARCH_SETTINGS.format(looked_at=min(max(limit, _LEAST_LOOKED_AT), _MOST_LOOKED_AT))
            rows = await self._with(settings, sql, named)
            if len(rows) >= limit:
                return chunk_hits(rows)
        _, *found = await self._tables.fetch(exact, named | {"most": _NO_LIMIT})
        return chunk_hits(found)

    async def _with(self, settings: str, sql: str, named: dict[str, object]) -> list[Row]:
        """Run a query in a transaction with these planner settings, and return its rows."""
        rows: list[Row] = []
        await self._tables.run([Statement(settings, {}), Statement(sql, named, into=rows)], again=True)
        return rows
