"""The shared part of the ports `Ingestion` and `ChunkIndex`, for any backend.

Lives here: holding claimed files, completing or failing them; which stores an owner has, and the texts of chunks. Not
here: claiming files, writing chunks and clearing up, matching words and comparing vectors, which each backend does in
its own way (`sqlite/vectors/` and PostgreSQL's), who runs the work (`search/ingest.py`),
ranking and fusion (`search/`), what clients see (`vector_stores.py`).

Invariants: leases are judged by the clock of leases alone. A file is found only when it is completed. A search names
a store by its number, which `known` gives for an owner.
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
"""The file that a claim holds, under the number that it had when it was claimed."""
KNOWN = """
SELECT id, {number}, version, coalesce(expires_at <= now_ms(), false) FROM vector_stores
WHERE owner = :owner AND id IN (:ids...)
"""


class SqlIngestion:
    """`Ingestion` but for claims, chunks and clearing up, on tables that the caller closes."""

    def __init__(self, tables: Tables, *, number: str, store: str, key: str, trash: str, counted: str = "") -> None:
        """`number`: the column with the number of a store, or of an ingested file; `store`: the one that refers to a
        store; `key`: of a file, whatever is ingested of it; `trash`: notes that the chunks of a held file are to be
        cleared away; `counted`: what else is set when a file is completed."""
        self._tables = tables
        held = HELD.format(number=number)
        self.renew_files = f"""
WITH held (id) AS MATERIALIZED (
  SELECT {key} FROM vector_files WHERE claim IN (:holders...) AND status = 'in_progress'
  ORDER BY {key} FOR NO KEY UPDATE
)
UPDATE vector_files AS f SET lease_until = lease_in(:lease) FROM held WHERE f.{key} = held.id RETURNING claim
"""
        # With `attempts` at 0 the next claim would keep the number, and with it what this attempt wrote.
        self.release_file = """
UPDATE vector_files SET claim = NULL, attempts = attempts - :uncounted,
  lease_until = CASE WHEN :pause > 0 THEN lease_in(:pause) ELSE taken() END
WHERE claim = :claim AND status = 'in_progress'
"""
        # The store's row first, as every statement that locks both.
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
        """Hold these for so many seconds from now; those that are held still."""
        return await renewed(self._tables, self.renew_files, claims, seconds)

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Give a file back; no worker claims it for `pause` seconds."""
        uncounted = 0 if attempted or job.attempts <= 1 else 1
        named = {"claim": job.claim, "pause": milliseconds(pause), "uncounted": uncounted}
        await self._tables.run([Statement(self.release_file, named)], again=True)

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """The file is ingested and can be found."""
        given = {"chunks": chunks, "usage_bytes": usage_bytes, "model": model}
        named = {"claim": job.claim, "no": job.number, **given}
        return await changed(
            self._tables, Statement(self.bump_store, named), Statement(self.complete_file, named, rows=1)
        )

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """The file cannot be ingested; what was written of it is cleared away."""
        named = {"claim": job.claim, "no": job.number, "code": error.code, "message": error.message}
        return await changed(self._tables, Statement(self._trash, named), Statement(self.fail_file, named, rows=1))

    async def waiting(self) -> int:
        """How many files are in progress."""
        return int((await self._tables.fetch(self.count_waiting, {}))[0][0])


def ingest_job(row: Row | tuple[Any, ...]) -> IngestJob:
    """A claimed file, of a row in this order."""
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
    """`ChunkIndex` but for its two searches, on tables that the caller closes."""

    number: str
    """The column with a store's number."""
    hits_sql: str
    """Selects number, file, file's name, attributes, text and store of the `:chunks` that are in the `:stores`."""

    def __init__(self, tables: Tables, stores: VectorStores, *, clock: Clock = now) -> None:
        """`clock`: the date where the database has none."""
        self._tables = tables
        self._stores = stores
        self._clock = clock

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """The owner's stores of these."""
        named = {"owner": owner, "ids": list(store_ids), "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(KNOWN.format(number=self.number), named)
        return [KnownStore(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """The chunks' texts with their files; those that are gone, or in another store than these, are left out."""
        named = {"chunks": list(chunks), "stores": [store.number for store in stores]}
        rows = await self._tables.fetch(self.hits_sql, named)
        return {row[0]: FoundChunk(row[1], row[2], 0.0, json.loads(row[3]), row[4], row[5]) for row in rows}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now."""
        await self._stores.touch(owner, store_ids)


def chunk_hits(rows: Sequence[Row]) -> list[ChunkHit]:
    """The chunks and scores of rows."""
    return [ChunkHit(row[0], row[1]) for row in rows]
