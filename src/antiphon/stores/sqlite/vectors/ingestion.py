"""Implements the `Ingestion` port for SQLite: workers claim files to ingest and write their chunks.

Lives here: claiming files, writing chunks and their full-text index entries, and deleting chunks of removed files. Not
here: the code that all backends share (`stores/vector_stores.py`), searching (`chunk_index.py`).

Invariant: one transaction inserts or deletes a chunk together with its index entry. Deleting an index entry twice would
damage the index. So the transaction that deletes chunks requires that its DELETE finds every chunk, and rolls back
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.engine.ports.vector_stores import CHUNK_BITS, DocumentChunk, IngestJob
from antiphon.ids import Clock, now
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.vectors.sql import BUMP, DELETE_ALL, TRASH_FILES, index_table
from antiphon.stores.tables import Row, Statement, milliseconds, run_required
from antiphon.stores.vector_stores import HELD, SqlIngestion, ingest_job
from antiphon.types.search import index_text

SWEPT_CHUNKS = 500
"""The maximum number of chunks that one call of `sweep` deletes. Deleting this many chunks takes the writer a few
milliseconds."""

_JOB = """
SELECT f.no, f.claim, s.owner, s.id, f.file_id, f.filename, f.chunking, f.chunk_size, f.chunk_overlap, f.attempts
FROM vector_files f CROSS JOIN vector_stores s ON s.no = f.store_no
"""
CLAIMABLE = "SELECT 1 FROM vector_files WHERE status = 'in_progress' AND lease_until <= :at LIMIT 1"
# Selects the file that has waited longest without a claim. All statements of a claim run in one transaction, so each
# selects the same file. A retried file gets a new number, so that its chunks do not conflict with chunks of the earlier
# attempt.
_NEXT = """(
  SELECT no FROM vector_files WHERE status = 'in_progress' AND lease_until <= lease_now()
  ORDER BY lease_until, no LIMIT 1
)"""
TRASH_ATTEMPT = TRASH_FILES.format(whose="s.id", which=f"f.no = {_NEXT} AND f.attempts > 0")
NEW_NUMBER = f"""
UPDATE file_numbers SET last = last + 1 WHERE (SELECT attempts FROM vector_files WHERE no = {_NEXT}) > 0
"""
CLAIM = f"""
UPDATE vector_files SET claim = :claim, lease_until = lease_now() + :lease, attempts = attempts + 1,
  no = iif(attempts > 0, (SELECT last FROM file_numbers), no)
WHERE no = {_NEXT}
"""
CLAIMED = _JOB + "WHERE f.claim IN (SELECT value FROM json_each(:claims))"
# Makes the write of chunks fail unless the claim still holds the file. If the file exists, its store and the store's
# full-text index exist too.
HOLD = f"UPDATE vector_files SET title = :title WHERE {HELD.format(number='no')}"
INSERT_CHUNK = "INSERT INTO chunks (id, tokens, vector, text) VALUES (?, ?, ?, ?)"
INSERT_WORDS = "INSERT INTO {table} (rowid, title, text) VALUES (?, ?, ?)"
DELETE_WORDS = "INSERT INTO {table} ({table}, rowid, title, text) VALUES ('delete', ?, ?, ?)"
EXPIRED = """
SELECT s.id FROM vector_stores s
WHERE s.expires_at <= now_ms() AND EXISTS (SELECT 1 FROM vector_files f WHERE f.store_no = s.no) LIMIT 1
"""
EXPIRE_FILES = """
DELETE FROM vector_files WHERE store_no = (SELECT no FROM vector_stores WHERE id = :id AND expires_at <= now_ms())
"""
TRASH = "SELECT file_no, store_id, title FROM vector_trash ORDER BY file_no LIMIT 1"
TRASHED_CHUNKS = "SELECT id, text FROM chunks WHERE id >= :first AND id < :end ORDER BY id LIMIT :limit"
DELETE_CHUNKS = "DELETE FROM chunks WHERE id >= :first AND id <= :last"
EMPTIED = """
DELETE FROM vector_trash
WHERE file_no = :no AND NOT EXISTS (SELECT 1 FROM chunks WHERE id >= :first AND id < :end)
"""


class SqliteIngestion(SqlIngestion):
    """Implements `Ingestion` on a vector database. The caller closes the database."""

    def __init__(self, tables: SqliteTables, clock: Clock = now) -> None:
        """`clock`: the wall clock in seconds, by which vector stores expire."""
        trash = TRASH_FILES.format(whose="s.id", which="f.no = :no AND f.claim = :claim")
        super().__init__(tables, number="no", store="store_no", key="no", trash=trash)
        self._readers = tables.readers
        self._lease_now = tables.lease_now
        self._clock = clock

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Claim files that wait for ingestion. See `Ingestion.claim`."""
        # Usually no file waits, so a read comes first and avoids a write.
        if not await self._readers.fetch(CLAIMABLE, {"at": self._lease_now()}, own=True):
            return []
        unit = []
        for claim in claims:
            named = {"claim": claim, "lease": milliseconds(seconds)}
            unit += [Statement(TRASH_ATTEMPT, {}), Statement(NEW_NUMBER, {}), Statement(CLAIM, named)]
        jobs: list[Row] = []
        await self._tables.run([*unit, Statement(CLAIMED, {"claims": list(claims)}, into=jobs)])
        return [ingest_job(job) for job in jobs]

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[DocumentChunk]) -> bool:
        """Insert chunks and their index entries. `first`: the position of the first chunk in the file. Returns False if
        the worker lost its claim."""
        start = (job.number << CHUNK_BITS) + first
        rows = [(start + place, one.tokens, one.vector, one.text) for place, one in enumerate(chunks)]
        title = index_text(title)
        words = [(start + place, title, index_text(one.text)) for place, one in enumerate(chunks)]
        return await run_required(
            self._tables,
            Statement(HOLD, {"claim": job.claim, "no": job.number, "title": title}, rows=1),
            Statement(INSERT_CHUNK, rows, many=True),
            Statement(INSERT_WORDS.format(table=index_table(job.store_id)), words, many=True),
        )

    async def sweep(self, at_once: int = SWEPT_CHUNKS) -> bool:
        """Delete at most `at_once` chunks of removed files or expired vector stores. Returns whether the call found
        anything to delete. See `Ingestion.sweep`."""
        date = {"now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(EXPIRED, date)
        if rows:
            named = {"id": rows[0][0], **date}
            which = "s.id = :id AND s.expires_at <= now_ms()"
            unit = [
                Statement(TRASH_FILES.format(whose="NULL", which=which), named),
                Statement("UPDATE vector_trash SET store_id = NULL WHERE store_id = :id", named),
                Statement(BUMP.format(which="id = :id"), named),
                Statement(EXPIRE_FILES, named),
                Statement(DELETE_ALL.format(table=index_table(rows[0][0])), {}),
            ]
            await self._tables.run(unit)
            return True
        rows = await self._tables.fetch(TRASH, {})
        if not rows:
            return False
        number, store_id, title = rows[0]
        first, end = number << CHUNK_BITS, (number + 1) << CHUNK_BITS
        chunks = await self._tables.fetch(TRASHED_CHUNKS, {"first": first, "end": end, "limit": at_once})
        unit = [Statement(EMPTIED, {"no": number, "first": first, "end": end})]
        if chunks:
            span = {"first": chunks[0][0], "last": chunks[-1][0]}
            # `rows` makes the whole deletion fail if another process has already deleted these chunks.
            deleted = [Statement(DELETE_CHUNKS, span, rows=len(chunks))]
            if store_id is not None:
                # A contentless FTS5 index stores no text, so deleting an entry needs exactly the words of its
                # insertion.
                words = [(chunk, title, index_text(text)) for chunk, text in chunks]
                deleted.append(Statement(DELETE_WORDS.format(table=index_table(store_id)), words, many=True))
            unit = [*deleted, *unit]
        await run_required(self._tables, *unit)
        return True
