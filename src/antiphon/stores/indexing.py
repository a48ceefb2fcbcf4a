"""Implements the shared part of the ports `Ingestion` and `ChunkIndex`, for any backend.

Lives here: renewing, releasing, completing and failing claimed files; the stores of an owner, and the texts of chunks.
Not here: the workers (`search/ingest.py`), ranking and fusion (`search/`), the API's view (`vector_stores.py`). Each
backend claims files, writes chunks, clears up and searches words and vectors (`sqlite/vectors/`, `postgres/vectors/`).

Invariants: only the lease clock decides whether a lease is expired. A search finds a file only after it is completed. A
search names a store by its number, which `known` returns for an owner.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.indexing import ChunkHit, IngestJob, KnownStore
from antiphon.engine.ports.vector_stores import Chunking, FileError, FoundChunk
from antiphon.ids import Clock, now
from antiphon.stores.pages import Row
from antiphon.stores.tables import Statement, Tables, changed, milliseconds, renewed
from antiphon.stores.vector_stores import VectorStores

HELD = "claim = :claim AND {number} = :no AND status = 'in_progress'"
"""Selects the file of a claim, by the number that it had at the claim."""
KNOWN = """
SELECT id, {number}, version, coalesce(expires_at <= now_ms(), false) FROM vector_stores
WHERE owner = :owner AND id IN (:ids...)
"""


class SqlIngestion:
    """`Ingestion` except claiming, chunks and clearing up, on tables that the caller closes."""

    def __init__(self, tables: Tables, *, number: str, store: str, key: str, trash: str, counted: str = "") -> None:
        """`number`: the column with the number of a store, or of an ingested file. `store`: the column that refers to a
        store. `key`: the column that identifies a file across attempts. `trash`: marks the chunks of a held file for
        clearing up. `counted`: further columns to set when a file is completed."""
        self._tables = tables
        held = HELD.format(number=number)
        self.renew_files = f"""
WITH held (id) AS MATERIALIZED (
  SELECT {key} FROM vector_files WHERE claim IN (:holders...) AND status = 'in_progress'
  ORDER BY {key} FOR NO KEY UPDATE
)
UPDATE vector_files AS f SET lease_until = lease_in(:lease) FROM held WHERE f.{key} = held.id RETURNING claim
"""
        # With `attempts` at 0 the next claim would reuse the number, and with it the rows that this attempt wrote.
        self.release_file = """
UPDATE vector_files SET claim = NULL, attempts = attempts - :uncounted,
  lease_until = CASE WHEN :pause > 0 THEN lease_in(:pause) ELSE taken() END
WHERE claim = :claim AND status = 'in_progress'
"""
        # Locks the store's row first, as every statement that locks both.
        self.bump_store = f"""
UPDATE vector_stores SET version = version + 1 WHERE {number} = (SELECT {store} FROM vector_files WHERE {held})
"""
        self.complete_file = f"""
UPDATE vector_files SET status = 'completed', chunks = :chunks, usage_bytes = :usage_bytes, embedding_model = :model,
  claim = NULL, error_code = NULL, error_message = NULL{counted}
WHERE {held}
"""
        self.fail_file = f"""
UPDATE vector_files SET status = 'failed', error_code = :code, error_message = :message, claim = NULL, usage_bytes = 0
WHERE {held}
"""
        self._trash = trash.format(held=held)
        self.count_waiting = f"""
SELECT count(*) FROM vector_files f JOIN vector_stores s ON s.{number} = f.{store}
WHERE f.status = 'in_progress' AND s.owner IS NOT NULL
"""

    async def renew(self, claims: Sequence[str], seconds: float) -> frozenset[str]:
        """Extend these claims to `seconds` from now. Returns those that are still held."""
        return await renewed(self._tables, self.renew_files, claims, seconds)

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Release a file; no worker claims it for `pause` seconds."""
        uncounted = 0 if attempted or job.attempts <= 1 else 1
        named = {"claim": job.claim, "pause": milliseconds(pause), "uncounted": uncounted}
        await self._tables.run([Statement(self.release_file, named)], again=True)

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """Complete the file, so that searches find it. False when the claim no longer holds it."""
        given = {"chunks": chunks, "usage_bytes": usage_bytes, "model": model}
        named = {"claim": job.claim, "no": job.number, **given}
        return await changed(
            self._tables, Statement(self.bump_store, named), Statement(self.complete_file, named, rows=1)
        )

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """Fail the file, and mark its chunks for clearing up. False when the claim no longer holds it."""
        named = {"claim": job.claim, "no": job.number, "code": error.code, "message": error.message}
        return await changed(self._tables, Statement(self._trash, named), Statement(self.fail_file, named, rows=1))

    async def waiting(self) -> int:
        """The number of files in progress."""
        return int((await self._tables.fetch(self.count_waiting, {}))[0][0])


def ingest_job(row: Row | tuple[Any, ...]) -> IngestJob:
    """The claimed file in a row with these columns in this order."""
    return IngestJob(
        number=row[0],
        claim=row[1],
        owner=row[2],
        store_id=row[3],
        file_id=row[4],
        filename=row[5],
        chunking=Chunking(row[6], row[7], row[8]),
        attempts=row[9],
    )


class SqlChunkIndex:
    """`ChunkIndex` except its two searches, on tables that the caller closes."""

    number: str
    """The column with a store's number."""
    hits_sql: str
    """Selects number, file, file name, attributes, text and store of the `:chunks` in the `:stores`."""

    def __init__(self, tables: Tables, stores: VectorStores, *, clock: Clock = now) -> None:
        """`clock`: the date, where the database has none."""
        self._tables = tables
        self._stores = stores
        self._clock = clock

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """Those of these stores that belong to the owner."""
        named = {"owner": owner, "ids": list(store_ids), "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(KNOWN.format(number=self.number), named)
        return [KnownStore(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """The texts of the chunks with their files. Deleted chunks and chunks in other stores are left out."""
        named = {"chunks": list(chunks), "stores": [store.number for store in stores]}
        rows = await self._tables.fetch(self.hits_sql, named)
        return {row[0]: FoundChunk(row[1], row[2], 0.0, json.loads(row[3]), row[4], row[5]) for row in rows}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record that the stores are in use now."""
        await self._stores.touch(owner, store_ids)


def chunk_hits(rows: Sequence[Row]) -> list[ChunkHit]:
    """The chunks and their scores from rows."""
    return [ChunkHit(row[0], row[1]) for row in rows]
