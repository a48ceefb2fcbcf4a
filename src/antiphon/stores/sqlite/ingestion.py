"""The durable side of ingestion: the `Ingestion` port over SQLite.

Lives here: the SQL of claiming files, of writing chunks with their words, and of clearing up. Not here: who runs the
work (`search/ingest.py`), what clients see (`../vector_stores.py`), searching (`chunk_index.py`).

Invariant: chunks and their words are written and deleted in one unit, and only once: a statement that would take words
out of an index a second time is undone with its unit. A file is found only when it is completed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.engine.ports.indexing import CHUNK_BITS, Chunk, IngestJob
from antiphon.engine.ports.vector_stores import Chunking, FileError
from antiphon.ids import Clock, now
from antiphon.stores.sqlite.lease_clock import lease_now
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.vector_sql import BUMP, DELETE_ALL, TRASH_FILES, index_table
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement, milliseconds
from antiphon.types.search_terms import index_text

SWEPT_CHUNKS = 500
"""How many chunks one piece of clearing up deletes: some milliseconds of the writer's time."""

_JOB = """
SELECT f.no, f.claim, s.owner, s.id, f.file_id, f.filename, f.chunking, f.chunk_size, f.chunk_overlap, f.attempts
FROM vector_files f CROSS JOIN vector_stores s ON s.no = f.store_no
"""
CLAIMABLE = "SELECT 1 FROM vector_files WHERE status = 'in_progress' AND lease_until <= :at LIMIT 1"
# Of all that nobody holds, the one that waits longest: the same one in every statement of a claim, which is one
# transaction. A file that was tried before gets another number, so that nothing of the earlier attempt is in the way.
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
RENEW = """
UPDATE vector_files SET lease_until = lease_now() + :lease
WHERE claim IN (SELECT value FROM json_each(:claims)) AND status = 'in_progress' RETURNING claim
"""
RELEASE = """
UPDATE vector_files SET claim = NULL, lease_until = iif(:pause > 0, lease_now() + :pause, 0),
  attempts = attempts - :uncounted
WHERE claim = :claim AND status = 'in_progress'
"""
# The file number must still be the claim's, and the store must be there: its index is.
HOLD = "UPDATE vector_files SET title = :title WHERE claim = :claim AND no = :no AND status = 'in_progress'"
INSERT_CHUNK = "INSERT INTO chunks (id, tokens, vector, text) VALUES (?, ?, ?, ?)"
INSERT_WORDS = "INSERT INTO {table} (rowid, title, text) VALUES (?, ?, ?)"
DELETE_WORDS = "INSERT INTO {table} ({table}, rowid, title, text) VALUES ('delete', ?, ?, ?)"
COMPLETE = """
UPDATE vector_files SET status = 'completed', chunks = :chunks, usage_bytes = :usage_bytes, embedding_model = :model,
  claim = NULL, error_code = NULL, error_message = NULL
WHERE claim = :claim AND no = :no AND status = 'in_progress'
"""
FAIL = """
UPDATE vector_files SET status = 'failed', error_code = :code, error_message = :message, claim = NULL, usage_bytes = 0
WHERE claim = :claim AND no = :no AND status = 'in_progress'
"""
WAITING = "SELECT count(*) FROM vector_files WHERE status = 'in_progress'"

EXPIRED = """
SELECT s.id FROM vector_stores s
WHERE s.expires_at <= :at AND EXISTS (SELECT 1 FROM vector_files f WHERE f.store_no = s.no) LIMIT 1
"""
EXPIRE_FILES = """
DELETE FROM vector_files WHERE store_no = (SELECT no FROM vector_stores WHERE id = :id AND expires_at <= :at)
"""
TRASH = "SELECT file_no, store_id, title FROM vector_trash ORDER BY file_no LIMIT 1"
TRASHED_CHUNKS = "SELECT id, text FROM chunks WHERE id >= :first AND id < :end ORDER BY id LIMIT :limit"
DELETE_CHUNKS = "DELETE FROM chunks WHERE id >= :first AND id <= :last"
EMPTIED = """
DELETE FROM vector_trash
WHERE file_no = :no AND NOT EXISTS (SELECT 1 FROM chunks WHERE id >= :first AND id < :end)
"""


class SqliteIngestion:
    """`Ingestion` on a writer and readers that somebody else owns and closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, clock: Clock = now) -> None:
        """`clock`: the dates by which stores expire."""
        self._writer = writer
        self._readers = readers
        self._clock = clock

    async def claim(self, claims: Sequence[str], seconds: float) -> list[IngestJob]:
        """Take files that nobody holds; see `Ingestion.claim`."""
        # Mostly there is nothing to do, which costs no write.
        if not await self._readers.fetch(CLAIMABLE, {"at": lease_now()}, own=True):
            return []
        unit = []
        for claim in claims:
            named = {"claim": claim, "lease": milliseconds(seconds)}
            unit += [Statement(TRASH_ATTEMPT), Statement(NEW_NUMBER), Statement(CLAIM, named)]
        jobs: list[tuple[Any, ...]] = []
        await self._writer.run([*unit, Statement(CLAIMED, {"claims": _list(claims)}, into=jobs)])
        return [
            IngestJob(
                number=number,
                claim=claim,
                owner=owner,
                store_id=store_id,
                file_id=file_id,
                filename=filename,
                chunking=Chunking(kind, size, overlap),
                attempts=attempts,
            )
            for number, claim, owner, store_id, file_id, filename, kind, size, overlap, attempts in jobs
        ]

    async def renew(self, claims: Sequence[str], seconds: float) -> frozenset[str]:
        """Hold these for so many seconds from now; those that are held still."""
        rows: list[tuple[Any, ...]] = []
        await self._writer.run([Statement(RENEW, {"claims": _list(claims), "lease": milliseconds(seconds)}, into=rows)])
        return frozenset(row[0] for row in rows)

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Give a file back; nobody takes it up for `pause` seconds."""
        # With `attempts` at 0 the next claim would keep the number, and with it what this attempt wrote.
        uncounted = 0 if attempted or job.attempts <= 1 else 1
        named = {"claim": job.claim, "pause": milliseconds(pause), "uncounted": uncounted}
        await self._writer.run([Statement(RELEASE, named)])

    async def append(self, job: IngestJob, first: int, title: str, chunks: Sequence[Chunk]) -> bool:
        """Write chunks from place `first` on."""
        start = (job.number << CHUNK_BITS) + first
        rows = [(start + place, one.tokens, one.vector, one.text) for place, one in enumerate(chunks)]
        title = index_text(title)
        words = [(start + place, title, index_text(one.text)) for place, one in enumerate(chunks)]
        return await self._run(
            Statement(HOLD, {"claim": job.claim, "no": job.number, "title": title}, rows=1),
            Statement(INSERT_CHUNK, rows, many=True),
            Statement(INSERT_WORDS.format(table=index_table(job.store_id)), words, many=True),
        )

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """The file is ingested and can be found."""
        named = {
            "claim": job.claim,
            "no": job.number,
            "chunks": chunks,
            "usage_bytes": usage_bytes,
            "model": model,
        }
        having = "no = (SELECT store_no FROM vector_files WHERE no = :no)"
        return await self._run(Statement(COMPLETE, named, rows=1), Statement(BUMP.format(which=having), named))

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """The file cannot be ingested; what was written of it is cleared away."""
        named = {"claim": job.claim, "no": job.number, "code": error.code, "message": error.message}
        return await self._run(
            Statement(TRASH_FILES.format(whose="s.id", which="f.no = :no AND f.claim = :claim"), named),
            Statement(FAIL, named, rows=1),
        )

    async def waiting(self) -> int:
        """How many files are in progress."""
        return int((await self._readers.fetch(WAITING, {}))[0][0])

    async def sweep(self) -> bool:
        """Clear up a piece; see `Ingestion.sweep`."""
        at = milliseconds(self._clock())
        rows = await self._readers.fetch(EXPIRED, {"at": at})
        if rows:
            named = {"id": rows[0][0], "at": at}
            which = "s.id = :id AND s.expires_at <= :at"
            await self._run(
                Statement(TRASH_FILES.format(whose="NULL", which=which), named),
                Statement("UPDATE vector_trash SET store_id = NULL WHERE store_id = :id", named),
                Statement(BUMP.format(which="id = :id"), named),
                Statement(EXPIRE_FILES, named),
                Statement(DELETE_ALL.format(table=index_table(rows[0][0]))),
            )
            return True
        rows = await self._readers.fetch(TRASH, {})
        if not rows:
            return False
        number, store_id, title = rows[0]
        first, end = number << CHUNK_BITS, (number + 1) << CHUNK_BITS
        chunks = await self._readers.fetch(TRASHED_CHUNKS, {"first": first, "end": end, "limit": SWEPT_CHUNKS})
        unit = []
        if chunks:
            span = {"first": chunks[0][0], "last": chunks[-1][0]}
            # `rows`: another process may have done this piece.
            unit.append(Statement(DELETE_CHUNKS, span, rows=len(chunks)))
            if store_id is not None:
                # The words as they were written: an index without content has to be told them.
                words = [(chunk, title, index_text(text)) for chunk, text in chunks]
                unit.append(Statement(DELETE_WORDS.format(table=index_table(store_id)), words, many=True))
        unit.append(Statement(EMPTIED, {"no": number, "first": first, "end": end}))
        await self._run(*unit)
        return True

    async def _run(self, *unit: Statement) -> bool:
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        return True


def _list(values: Sequence[str]) -> str:
    return "[" + ",".join(f'"{value}"' for value in values) + "]"
