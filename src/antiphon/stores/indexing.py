"""Implements the operations of the ports `Ingestion` and `ChunkIndex` that all backends share.

Lives here: the SQL that renews, releases, completes or fails claimed files, and the SQL that reads an owner's stores
and the texts of chunks. Not here: the workers (`search/ingest.py`), ranking and fusion (`search/`), the operations of
the API (`vector_stores.py`). Each backend claims files, writes chunks, deletes chunks of removed files, and searches
words and vectors (`sqlite/vectors/`, `postgres/vectors/`).

Invariants: only the database's lease clock decides whether a lease is expired. A search finds a file only after a
worker has completed the file. A search identifies a store by its number, which `known` returns only for the store's
owner.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.indexing import ChunkHit, IngestJob, KnownStore
from antiphon.engine.ports.vector_stores import Chunking, FileError, FoundChunk
from antiphon.ids import Clock, now
from antiphon.stores.tables import Row, Statement, Tables, changed, milliseconds, renewed
from antiphon.stores.vector_stores import VectorStores

HELD = "claim = :claim AND {number} = :no AND status = 'in_progress'"
"""SQL: selects the file that a worker holds, by the claim and by the file number that the claim returned."""
KNOWN = """
SELECT id, {number}, version, coalesce(expires_at <= now_ms(), false) FROM vector_stores
WHERE owner = :owner AND id IN (:ids...)
"""


class SqlIngestion:
    """Implements `Ingestion` on tables that the caller closes. A backend's subclass adds `claim`, `append` and
    `sweep`."""

    def __init__(self, tables: Tables, *, number: str, store: str, key: str, trash: str, counted: str = "") -> None:
        """`number`: the column with the number of a store, or of an ingested file. `store`: the column that refers to a
        store. `key`: the column that identifies a file across attempts. `trash`: the statement that marks the chunks of
        a held file for deletion by a sweep. `counted`: the SET clauses of further columns that a backend updates when a
        worker completes a file."""
        self._tables = tables
        held = HELD.format(number=number)
        self.renew_files = f"""
WITH held (id) AS MATERIALIZED (
  SELECT {key} FROM vector_files WHERE claim IN (:holders...) AND status = 'in_progress'
  ORDER BY {key} FOR NO KEY UPDATE
)
UPDATE vector_files AS f SET lease_until = lease_in(:lease) FROM held WHERE f.{key} = held.id RETURNING claim
"""
        # If `attempts` fell to 0, the next claim would reuse the file number, and its chunks would mix with the chunks
        # of this attempt. So `release` never lowers `attempts` to 0.
        self.release_file = """
UPDATE vector_files SET claim = NULL, attempts = attempts - :uncounted,
  lease_until = CASE WHEN :pause > 0 THEN lease_in(:pause) ELSE taken() END
WHERE claim = :claim AND status = 'in_progress'
"""
        # Locks the store's row before the file's row, as every transaction that locks both does, to avoid deadlocks.
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
        """Extend the leases of these claims to `seconds` from now. Returns the claims that still hold a file."""
        return await renewed(self._tables, self.renew_files, claims, seconds)

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Release a claimed file. No worker claims the file again for `pause` seconds. `attempted`: whether the claim
        counts as an attempt."""
        uncounted = 0 if attempted or job.attempts <= 1 else 1
        named = {"claim": job.claim, "pause": milliseconds(pause), "uncounted": uncounted}
        await self._tables.run([Statement(self.release_file, named)], again=True)

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """Mark the file as completed, so that searches find it. Returns False when the worker has lost its claim.
        `model`: the embedding model of the file's vectors, or None."""
        given = {"chunks": chunks, "usage_bytes": usage_bytes, "model": model}
        named = {"claim": job.claim, "no": job.number, **given}
        return await changed(
            self._tables, Statement(self.bump_store, named), Statement(self.complete_file, named, rows=1)
        )

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """Mark the file as failed, and its chunks for deletion. Returns False when the worker has lost its claim."""
        named = {"claim": job.claim, "no": job.number, "code": error.code, "message": error.message}
        return await changed(self._tables, Statement(self._trash, named), Statement(self.fail_file, named, rows=1))

    async def waiting(self) -> int:
        """Return the number of files whose ingestion is not finished."""
        return int((await self._tables.fetch(self.count_waiting, {}))[0][0])


def ingest_job(row: Row | tuple[Any, ...]) -> IngestJob:
    """Convert a row to the claimed file. The row has the columns in the order of the fields below."""
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
    """Implements `ChunkIndex` on tables that the caller closes. A backend's subclass adds the searches `match` and
    `nearest`."""

    number: str
    """The name of the column with a store's number."""
    hits_sql: str
    """The query that selects number, file, file name, attributes, text and store of those `:chunks` that are in
    `:stores`."""

    def __init__(self, tables: Tables, stores: VectorStores, *, clock: Clock = now) -> None:
        """`clock`: the source of the current time for a database without a clock (SQLite)."""
        self._tables = tables
        self._stores = stores
        self._clock = clock

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """Return the stores with these ids that belong to the owner."""
        named = {"owner": owner, "ids": list(store_ids), "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(KNOWN.format(number=self.number), named)
        return [KnownStore(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """Return the text and the file of each chunk, by chunk number. The result lacks deleted chunks and chunks of
        other stores."""
        named = {"chunks": list(chunks), "stores": [store.number for store in stores]}
        rows = await self._tables.fetch(self.hits_sql, named)
        return {row[0]: FoundChunk(row[1], row[2], 0.0, json.loads(row[3]), row[4], row[5]) for row in rows}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record the current time as the last use of these stores, which postpones their expiry."""
        await self._stores.touch(owner, store_ids)


def chunk_hits(rows: Sequence[Row]) -> list[ChunkHit]:
    """Convert rows of a chunk's number and its score to hits."""
    return [ChunkHit(row[0], row[1]) for row in rows]
