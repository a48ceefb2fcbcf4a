"""Implements the `Ingestion` port for PostgreSQL: claims files and writes their chunks.

Lives here: claiming files, writing chunks with their words and vectors, and deleting the chunks of removed files. Not
here: the code that all backends share (`stores/vector_stores.py`), searches (`chunk_index.py`), the table of vectors
and its indexes (`table.py`).

A statement that writes chunks first locks the file's row. A file number is the integer key of a file's row. The
statement writes nothing unless the row still has the worker's claim and the same file number. When a file is removed or
gets a new file number, a trigger records the old number in the table `vector_trash`. From then on, no statement writes
chunks for the old number. A claim is one idempotent statement, and so is a write of several chunks. The pool retries
these statements after a lost connection.

Invariant: only the database's clock decides whether a lease is expired.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.vector_stores import DocumentChunk, IngestJob
from antiphon.engine.waiting import DOCUMENTS
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.vectors.table import VectorIndexes, VectorTable, vector_text, width_of
from antiphon.stores.postgres.vectors.words import chunk_words
from antiphon.stores.tables import Row, Statement, Tables, milliseconds
from antiphon.stores.vector_stores import HELD, SqlIngestion, ingest_job

SWEPT_CHUNKS = 500
SWEPT_FILES = 200
"""The maximum numbers of chunks and of files that one transaction of a sweep deletes. The transaction takes tens of
milliseconds."""

# Claims the unclaimed files with the lowest numbers. A retried file gets a new number, so that its chunks do not
# conflict with chunks of the earlier attempt.
CLAIM = """
WITH names AS MATERIALIZED (
  SELECT c.name, row_number() OVER () AS place FROM unnest(:claims::text[]) AS c (name)
  WHERE NOT EXISTS (
    SELECT 1 FROM vector_files f JOIN vector_stores s ON s.number = f.store_number
    WHERE f.claim = c.name AND s.owner IS NOT NULL
  )
), free AS MATERIALIZED (
  SELECT f.id FROM vector_files f JOIN vector_stores s ON s.number = f.store_number
  WHERE f.status = 'in_progress' AND (f.lease_until IS NULL OR f.lease_until <= now()) AND s.owner IS NOT NULL
  ORDER BY f.number LIMIT (SELECT count(*) FROM names) FOR UPDATE OF f SKIP LOCKED
), numbered AS (
  SELECT id, row_number() OVER () AS place FROM free
), taken AS (
  UPDATE vector_files f SET claim = n.name, lease_until = lease_in(:lease), attempts = f.attempts + 1,
    number = CASE WHEN f.attempts > 0 THEN nextval('vector_numbers') ELSE f.number END
  FROM numbered JOIN names n USING (place) WHERE f.id = numbered.id
  RETURNING f.number, f.claim, f.store_number, f.file_id, f.filename, f.chunking, f.chunk_size, f.chunk_overlap,
    f.attempts
), held AS (
  SELECT * FROM taken UNION ALL
  SELECT number, claim, store_number, file_id, filename, chunking, chunk_size, chunk_overlap, attempts
  FROM vector_files WHERE claim IN (:claims...)
)
SELECT h.number, h.claim, s.owner, s.id, h.file_id, h.filename, h.chunking, h.chunk_size, h.chunk_overlap, h.attempts
FROM held h JOIN vector_stores s ON s.number = h.store_number
WHERE s.owner IS NOT NULL ORDER BY h.number
"""
_HELD = HELD.format(number="number")
_STORE_THERE = "EXISTS (SELECT 1 FROM vector_stores s WHERE s.number = f.store_number AND s.owner IS NOT NULL)"
_APPEND = f"""
WITH held AS (
  UPDATE vector_files f SET vector_width = coalesce(CAST(:width AS integer), vector_width)
  WHERE {_HELD} AND {_STORE_THERE}
  RETURNING number, store_number
), new AS MATERIALIZED (
  SELECT held.number, held.store_number, c.*
  FROM held, unnest(:places::integer[], :tokens::integer[], :lengths::integer[], :texts::text[], {{vectors}})
    AS c (place, tokens, length, text, {{columns}})
), written AS (
  INSERT INTO chunks (file_number, place, tokens, length, words, text)
  SELECT number, place, tokens, length,
    string_to_array(substr(replace(words, E'\\n', E'\\n' || store_number || ' '), 2), E'\\n'), text
  FROM new
  ON CONFLICT DO NOTHING
){{also}}
SELECT 1 FROM held
"""
# Each entry in `:words` begins with a newline, and the statement inserts the store's number after the newline.
APPEND = _APPEND.format(vectors=":words::text[]", columns="words", also="")
APPEND_VECTORS = _APPEND.format(
    vectors=":words::text[], :vectors::text[]",
    columns="words, vector",
    also=""", vectors AS (
  INSERT INTO chunk_vectors (file_number, place, store_number, width, vector)
  SELECT number, place, store_number, :width, vector::halfvec FROM new WHERE vector IS NOT NULL
  ON CONFLICT DO NOTHING
)""",
)
# Locks the file's row before it records the number, as a deletion does, to avoid deadlocks.
_TRASH = """
INSERT INTO vector_trash SELECT number FROM vector_files WHERE {held} FOR NO KEY UPDATE ON CONFLICT DO NOTHING
"""
_COUNTED = ", words = (SELECT coalesce(sum(length), 0) FROM chunks WHERE file_number = :no)"

# Checks with one query whether a sweep has rows to delete.
_EXPIRED = "(s.expires_at <= unix_ms() AND EXISTS (SELECT 1 FROM vector_files f WHERE f.store_number = s.number))"
LITTER = f"""
SELECT EXISTS (SELECT 1 FROM vector_trash) OR EXISTS (SELECT 1 FROM vector_stores WHERE owner IS NULL)
  OR EXISTS (SELECT 1 FROM vector_stores s WHERE {_EXPIRED})
"""
# `OVER` and `TRASH` lock rows that no other process has locked for its sweep.
OVER = f"""
SELECT s.number, s.owner IS NULL AS deleted FROM vector_stores s
WHERE s.owner IS NULL OR {_EXPIRED} LIMIT 1 FOR UPDATE OF s SKIP LOCKED
"""
DELETE_FILES = """
DELETE FROM vector_files WHERE id IN (SELECT id FROM vector_files WHERE store_number = $1 LIMIT $2) RETURNING 1
"""
BUMP = "UPDATE vector_stores SET version = version + 1 WHERE number = $1"
DELETE_STORE = """
DELETE FROM vector_stores WHERE number = $1 AND owner IS NULL
  AND NOT EXISTS (SELECT 1 FROM vector_files WHERE store_number = $1)
"""
TRASH = "SELECT file_number FROM vector_trash ORDER BY file_number LIMIT $1 FOR UPDATE SKIP LOCKED"
DELETE_CHUNKS = """
DELETE FROM chunks WHERE (file_number, place) IN (
  SELECT file_number, place FROM chunks WHERE file_number = ANY($1::bigint[]) LIMIT $2
)
"""
EMPTIED = """
DELETE FROM vector_trash t
WHERE file_number = ANY($1::bigint[]) AND NOT EXISTS (SELECT 1 FROM chunks c WHERE c.file_number = t.file_number)
"""


class PostgresIngestion(SqlIngestion):
    """Implements `Ingestion` on a database that the caller closes."""

    def __init__(self, tables: Tables, database: Database, table: VectorTable, indexes: VectorIndexes) -> None:
        super().__init__(tables, number="number", store="store_number", key="id", trash=_TRASH, counted=_COUNTED)
        self._database = database
        self._table = table
        self._indexes = indexes

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Claim files that wait for ingestion. See `Ingestion.claim`."""
        rows: list[Row] = []
        named = {"claims": list(claims), "lease": milliseconds(seconds)}
        await self._tables.run([Statement(CLAIM, named, into=rows)], again=True)
        return [ingest_job(row) for row in rows]

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[DocumentChunk]) -> bool:
        """Write the chunks at positions `first`, `first + 1`, … of the file. Returns False when the worker has lost its
        claim."""
        words, lengths, vectors = await DOCUMENTS.run(_prepared, title, chunks)
        width = next((width_of(chunk.vector) for chunk in chunks if chunk.vector is not None), None)
        named = {
            "claim": job.claim,
            "no": job.number,
            "places": list(range(first, first + len(chunks))),
            "tokens": [chunk.tokens for chunk in chunks],
            "lengths": lengths,
            "texts": [chunk.text for chunk in chunks],
            "width": width,
            "words": words,
            "vectors": vectors,
        }
        if width is not None:
            await self._table.there()
        rows: list[Row] = []
        await self._tables.run([Statement(APPEND if width is None else APPEND_VECTORS, named, into=rows)], again=True)
        return bool(rows)

    async def sweep(self) -> bool:
        """Delete a batch of files and chunks. See `Ingestion.sweep`."""
        self._indexes.look()
        if not (await self._tables.fetch(LITTER, {}))[0][0]:
            return False
        return await self._database.transaction(_clear_up)


async def _clear_up(connection: Connection) -> bool:
    """Delete a batch of files of deleted or expired vector stores, and a batch of chunks of removed files. Returns
    False when no rows remain, or other processes have locked all of them."""
    over = await connection.fetch(OVER)
    if over:
        number = over[0]["number"]
        gone = await connection.fetch(DELETE_FILES, number, SWEPT_FILES)
        if gone and not over[0]["deleted"]:
            await connection.execute(BUMP, number)
        if len(gone) < SWEPT_FILES and over[0]["deleted"]:
            await connection.execute(DELETE_STORE, number)
    trash = [row[0] for row in await connection.fetch(TRASH, SWEPT_FILES)]
    if trash:
        await connection.execute(DELETE_CHUNKS, trash, SWEPT_CHUNKS)
        # Run a separate statement, so that its snapshot contains only the chunks that remain after the deletion.
        await connection.execute(EMPTIED, trash)
    return bool(over or trash)


def _prepared(title: str, chunks: Sequence[DocumentChunk]) -> tuple[list[str], list[int], list[str | None]]:
    """Return three lists with one element per chunk: the index entries, the number of words, and the vector as text or
    None."""
    words, lengths, vectors = [], [], []
    for chunk in chunks:
        found, length = chunk_words(title, chunk.text)
        words.append("".join(f"\n{entry}" for entry in found))
        lengths.append(length)
        vectors.append(None if chunk.vector is None else vector_text(chunk.vector))
    return words, lengths, vectors
