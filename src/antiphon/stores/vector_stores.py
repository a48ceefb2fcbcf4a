"""Stores vector stores, their files and their file batches, and implements the shared parts of ingestion and search.

Lives here: the operations of the API and the pages of lists (`VectorStores`). `SqlIngestion` changes the rows of files
that a worker has claimed. `SqlChunkIndex` reads the vector stores of an owner and the texts of chunks. Not here: the
SQL (`vector_sql.py`), the workers and the ranking (`search/`). Each backend claims files, writes and deletes chunks,
and searches words and vectors (`sqlite/vectors/`, `postgres/vectors/`).

Invariants: every transaction for a client checks the owner. Either each statement of the transaction checks the owner,
or the first statement does. If that statement finds no row, the transaction fails. Only the clock of the database (on
SQLite, of the machine) decides whether a lease is expired. A search finds a file only after a worker has completed the
file. A search identifies a vector store by its integer key, which `known` returns only for the vector store's owner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.engine.ports.vector_stores import (
    Batch,
    ChunkHit,
    Chunking,
    FileError,
    FileStateCounts,
    FoundChunk,
    IngestJob,
    KnownStore,
    NewFile,
    StoreChanges,
    VectorFile,
    VectorStore,
)
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.tables import (
    Row,
    RowsMissing,
    Statement,
    Tables,
    check_cursors,
    count_by_owner,
    milliseconds,
    page_parameters,
    renew_leases,
    run_required,
)
from antiphon.stores.vector_sql import Named, VectorSql
from antiphon.types.search import Attributes

_ACTIVE_MS = 60_000
_TOUCHED = 10_000
HELD = "claim = :claim AND {number} = :no AND status = 'in_progress'"
"""SQL: selects the file that a worker holds, by the id of the claim and by the file's integer key, which the claim
returned."""
KNOWN = """
SELECT id, {number}, version, coalesce(expires_at <= now_ms(), false) FROM vector_stores
WHERE owner = :owner AND id IN (:ids...)
"""


class VectorStores:
    """Stores vector stores, their files and batches for the API, in a database that the caller closes.

    Changes are durable when a method returns. Every method raises `StoreError` when the database fails. No method
    blocks the event loop.

    This class calls `on_work` when workers have files to ingest or chunks to delete. This class calls `on_deleted` with
    the id of a deleted vector store.
    """

    def __init__(self, tables: Tables, keys: IdempotencyStore, sql: VectorSql, *, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._keys = keys
        self._sql = sql
        self._clock = clock
        self.noted_uses: dict[tuple[str, str], int] = {}
        """The time in milliseconds of each vector store's last recorded use, by owner and id. `touch` updates a vector
        store's row at most once a minute."""
        self.on_work: Callable[[], None] = lambda: None
        self.on_deleted: Callable[[str], None] = lambda store_id: None

    async def create(
        self,
        owner: str,
        store_id: str,
        *,
        name: str | None,
        description: str | None,
        metadata: bytes,
        expires_days: int | None,
        files: Sequence[NewFile] = (),
        once: OnceOnly | None = None,
    ) -> VectorStore:
        """Create a vector store with these files, which workers then ingest. Raises `AlreadyMade` with the vector
        store's id when an earlier request with the same idempotency key `once` created the vector store."""
        named = self._named(owner, store_id, name=name, description=description, metadata=metadata, days=expires_days)
        unit = [*self._sql.create(named), *self._additions(named | {"batch_id": None}, files)]
        await self._keys.make(once, store_id, unit, self._sql.delete(named))
        if files:
            self.on_work()
        made = await self.get(owner, store_id)
        if made is None:
            raise StoreError("The vector store was deleted while it was made.")
        return made

    async def made(self, once: OnceOnly) -> str | None:
        """Return the id of the object that an earlier request with the same idempotency key created, or None. When a
        client repeats a request, the objects to which the request refers may already be deleted. So call this method
        before you read those objects."""
        return await self._keys.made(once)

    async def get(self, owner: str, store_id: str) -> VectorStore | None:
        """Return the vector store, or None if the owner has no such vector store."""
        rows = await self._tables.fetch(self._sql.get_store, self._named(owner, store_id))
        return _vector_store(rows[0]) if rows else None

    async def counts(self) -> dict[str, int]:
        """Return the number of vector stores of each owner."""
        return await count_by_owner(self._tables, "vector_stores")

    async def list(self, owner: str, page: PageQuery) -> Page[VectorStore]:
        """Return a page of the owner's vector stores by creation time. Cursors are ids (`vs_…`).

        With both cursors, the page has only vector stores between them. An unknown cursor raises `InvalidRequest`.
        """
        await check_cursors(page, partial(self.get, owner), "There is no vector store with this id")
        rows = await self._tables.fetch(
            self._sql.stores[page.backward], self._named(owner, "", **page_parameters(page))
        )
        return Page(page.shown([_vector_store(row) for row in rows]), has_more=len(rows) > page.limit)

    async def update(self, owner: str, store_id: str, changes: StoreChanges) -> VectorStore | None:
        """Change the vector store's fields and return the vector store, or None when the vector store does not exist.
        The change counts as a use, which postpones the vector store's expiry."""
        given = {"name": changes.name, "metadata": changes.metadata, "days": changes.expires_days}
        named = self._named(owner, store_id, new_name=changes.name is not None, clear=changes.clear_expiry, **given)
        if not await self._changed([Statement(self._sql.update_store, named, rows=1)]):
            return None
        return await self.get(owner, store_id)

    async def delete(self, owner: str, store_id: str) -> bool:
        """Delete the vector store with its files and chunks. Returns False when the vector store does not exist."""
        deleted = await self._changed(self._sql.delete(self._named(owner, store_id)), work=True)
        if deleted:
            self.noted_uses.pop((owner, store_id), None)
            self.on_deleted(store_id)
        return deleted

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record the current time as the last use of these vector stores, with a precision of one minute. A use
        postpones a vector store's expiry."""
        at = milliseconds(self._clock())
        due = [one for one in store_ids if at - self.noted_uses.get((owner, one), 0) >= _ACTIVE_MS]
        if due:
            if len(self.noted_uses) > _TOUCHED:
                self.noted_uses.clear()
            self.noted_uses.update({(owner, one): at for one in due})
            named = self._named(owner, "", ids=due, active=_ACTIVE_MS)
            await self._tables.run([Statement(self._sql.touch, named)], again=True)

    async def count_chunks(self, owners: Sequence[str]) -> int:
        """Return the number of chunks in all vector stores of these owners. Each store counts as one more chunk, and
        each file as at least one."""
        return (await self._tables.fetch(self._sql.count_chunks, {"owners": list(owners)}))[0][0]  # type: ignore[no-any-return]

    async def states_of(self, owner: str, file_ids: Sequence[str]) -> dict[str, FileStateCounts]:
        """Return the ingestion states of each of these files in the owner's vector stores. The result lacks files that
        are in no vector store."""
        states: dict[str, dict[str, int]] = {}
        named = {"owner": owner, "ids": list(file_ids)}
        for file_id, state, count in await self._tables.fetch(self._sql.count_states, named):
            states.setdefault(file_id, {})[state] = count
        return {file_id: FileStateCounts(**counts) for file_id, counts in states.items()}

    async def add_files(
        self,
        owner: str,
        store_id: str,
        files: Sequence[NewFile],
        *,
        batch_id: str | None = None,
        once: OnceOnly | None = None,
    ) -> bool:
        """Add files to the vector store, which workers then ingest. Creates a batch of these files if `batch_id` is
        set. Returns False when the vector store does not exist.

        If a file is already in the vector store, workers ingest the file again. Searches do not find the file until the
        new ingestion is complete. Raises `AlreadyMade` when an earlier request with the same idempotency key `once`
        added the files. The exception has the id of the batch or of the first file.
        """
        named = self._named(owner, store_id, batch_id=batch_id)
        unit = [Statement(self._sql.hold_used, named, rows=1)]
        if batch_id is not None:
            unit.append(Statement(self._sql.insert_batch, named, rows=1))
        unit += self._additions(named, files)
        try:
            # A late commit cannot be undone, because it has overwritten the file's previous state. A retry adds the
            # same files again, so the result is the same.
            await self._keys.make(once, batch_id or files[0].file_id, unit, [])
        except RowsMissing:
            return False
        self.on_work()
        return True

    async def get_file(self, owner: str, store_id: str, file_id: str) -> VectorFile | None:
        """Return the file in this vector store, or None if the vector store has no such file."""
        rows = await self._tables.fetch(self._sql.get_file, self._named(owner, store_id, file_id=file_id))
        return _vector_file(rows[0]) if rows else None

    async def list_files(
        self, owner: str, store_id: str, page: PageQuery, *, state: str | None = None, batch_id: str | None = None
    ) -> Page[VectorFile] | None:
        """Return a page of the vector store's files, or of the batch's files if `batch_id` is set. Returns None when
        the vector store or the batch does not exist. An unknown cursor raises `InvalidRequest`."""
        if batch_id is not None:
            if await self.get_batch(owner, store_id, batch_id) is None:
                return None
        elif await self.get(owner, store_id) is None:
            return None
        find = partial(self.get_file, owner, store_id)
        await check_cursors(page, find, "There is no file with this id in the vector store")
        named = self._named(owner, store_id, state=state, batch_id=batch_id, **page_parameters(page))
        rows = await self._tables.fetch(self._sql.files[page.backward], named)
        return Page(page.shown([_vector_file(row) for row in rows]), has_more=len(rows) > page.limit)

    async def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Attributes) -> bool:
        """Replace a file's attributes. Returns False when the vector store has no such file."""
        named = self._named(owner, store_id, file_id=file_id, attributes=_attributes_json(attributes))
        unit = [Statement(self._sql.lock, named, into=[]), Statement(self._sql.set_attributes, named, rows=1)]
        return await self._changed([*unit, *self._sql.attributes(named, attributes)])

    async def remove_file(self, owner: str, store_id: str, file_id: str) -> bool:
        """Remove a file from the vector store. Returns False when the file is not in the vector store."""
        named = self._named(owner, store_id, file_id=file_id)
        unit = [Statement(self._sql.hold, named), *self._sql.clear("one", named)]
        return await self._changed([*unit, Statement(self._sql.delete_file, named, rows=1)], work=True)

    async def forget_file(self, owner: str, file_id: str) -> None:
        """Remove a file from all the owner's vector stores, because the owner has deleted the uploaded file."""
        named = self._named(owner, "", file_id=file_id)
        unit = [
            Statement(self._sql.lock_stores_of_file, named, into=[]),
            Statement(self._sql.bump_stores_of_file, named),
            *self._sql.clear("all", named),
            Statement(self._sql.delete_everywhere, named),
        ]
        if (await self._tables.run(unit))[-1]:
            self.on_work()

    async def get_batch(self, owner: str, store_id: str, batch_id: str) -> Batch | None:
        """Return the batch with the counts of its files, or None if the vector store has no such batch."""
        rows = await self._tables.fetch(self._sql.get_batch, self._named(owner, store_id, batch_id=batch_id))
        return _batch(rows[0]) if rows else None

    async def cancel_batch(self, owner: str, store_id: str, batch_id: str) -> bool:
        """Cancel the batch's files whose ingestion is not finished. Returns False when the batch does not exist."""
        named = self._named(owner, store_id, batch_id=batch_id)
        unit = [Statement(self._sql.lock, named, into=[]), Statement(self._sql.cancel_batch, named, rows=1)]
        return await self._changed([*unit, *self._sql.cancel_files(named)], work=True)

    async def file_text(
        self, owner: str, store_id: str, file_id: str, first: int, limit: int
    ) -> tuple[str, ...] | None:
        """Return the texts of up to `limit` of the file's chunks, from chunk number `first` on. Returns None when the
        file does not exist."""
        named = self._named(owner, store_id, file_id=file_id, first=first, limit=limit)
        rows = await self._tables.fetch(self._sql.file_text, named)
        return tuple([row[0] for row in rows if row[0] is not None]) if rows else None

    def _additions(self, named: Named, files: Sequence[NewFile]) -> Sequence[Statement]:
        # If a request names a file twice, the last entry applies.
        files = tuple({file.file_id: file for file in files}.values())
        rows = [
            {
                **named,
                "file_id": file.file_id,
                "filename": file.filename,
                "attributes": _attributes_json(file.attributes),
                "chunking": file.chunking.kind,
                "size": file.chunking.size,
                "overlap": file.chunking.overlap,
            }
            for file in files
        ]
        unit = self._sql.add_files(named, rows) if rows else []
        for file, row in zip(files, rows, strict=True):
            unit += self._sql.attributes(row, file.attributes)
        return unit

    async def _changed(self, unit: Sequence[Statement], *, work: bool = False) -> bool:
        done = await run_required(self._tables, *unit)
        if done and work:
            self.on_work()
        return done

    def _named(self, owner: str, store_id: str, **more: object) -> dict[str, object]:
        return {"owner": owner, "id": store_id, "now_ms": milliseconds(self._clock()), **more}


def _vector_store(row: Row) -> VectorStore:
    """Convert a row of the query `get_store` to a vector store with its file counts."""
    expires_at = row["expires_at"]
    return VectorStore(
        id=row["id"],
        created_at=row["created_at"] / 1000,
        last_active_at=row["last_active_at"] / 1000,
        name=row["name"],
        description=row["description"],
        metadata=row["metadata"],
        expires_days=row["expires_days"],
        expires_at=None if expires_at is None else expires_at / 1000,
        expired=bool(row["expired"]),
        usage_bytes=row["usage_bytes"],
        counts=_counts(row),
    )


def _vector_file(row: Row) -> VectorFile:
    """Convert a row of the query `get_file` to a file in a vector store."""
    return VectorFile(
        file_id=row["file_id"],
        store_id=row["store_id"],
        filename=row["filename"],
        state=row["status"],
        created_at=row["created_at"] / 1000,
        usage_bytes=row["usage_bytes"],
        chunking=Chunking(row["chunking"], row["chunk_size"], row["chunk_overlap"]),
        attributes=json.loads(row["attributes"]),
        error=None if row["error_code"] is None else FileError(row["error_code"], row["error_message"]),
    )


def _batch(row: Row) -> Batch:
    """Convert a row of the query `get_batch` to a batch with its file counts."""
    return Batch(row["id"], row["store_id"], row["created_at"] / 1000, bool(row["stopped"]), _counts(row))


def _attributes_json(attributes: Attributes) -> bytes:
    """Encode attributes as the JSON object that the store keeps in the file's row."""
    return json.dumps(dict(attributes), ensure_ascii=False).encode()


def _counts(row: Row) -> FileStateCounts:
    return FileStateCounts(row["in_progress"], row["completed"], row["failed"], row["cancelled"])


class SqlIngestion:
    """Implements `Ingestion` on a database that the caller closes. A backend's subclass adds `claim`, `append` and
    `sweep`."""

    def __init__(self, tables: Tables, *, number: str, store: str, key: str, trash: str, counted: str = "") -> None:
        """`number`: the name of the column with the integer key of a vector store or of an ingested file. `store`: the
        name of the column that refers to a vector store. `key`: the name of the column whose value stays the same in
        all attempts to ingest a file. `trash`: the statement that marks the chunks of a claimed file for deletion by a
        sweep. `counted`: the SET clauses of further columns that a backend updates when a worker completes a file."""
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
        return await renew_leases(self._tables, self.renew_files, claims, seconds)

    async def release(self, job: IngestJob, *, pause: float = 0.0, attempted: bool = True) -> None:
        """Release a claimed file. No worker claims the file again for `pause` seconds. `attempted`: whether the claim
        counts as an attempt to ingest the file."""
        uncounted = 0 if attempted or job.attempts <= 1 else 1
        named = {"claim": job.claim, "pause": milliseconds(pause), "uncounted": uncounted}
        await self._tables.run([Statement(self.release_file, named)], again=True)

    async def complete(self, job: IngestJob, *, chunks: int, usage_bytes: int, model: str | None) -> bool:
        """Mark the file as completed, so that searches find it. Returns False when the worker has lost its claim.
        `model`: the embedding model of the file's vectors, or None."""
        given = {"chunks": chunks, "usage_bytes": usage_bytes, "model": model}
        named = {"claim": job.claim, "no": job.number, **given}
        return await run_required(
            self._tables, Statement(self.bump_store, named), Statement(self.complete_file, named, rows=1)
        )

    async def fail(self, job: IngestJob, error: FileError) -> bool:
        """Mark the file as failed, and its chunks for deletion. Returns False when the worker has lost its claim."""
        named = {"claim": job.claim, "no": job.number, "code": error.code, "message": error.message}
        return await run_required(self._tables, Statement(self._trash, named), Statement(self.fail_file, named, rows=1))

    async def waiting(self) -> int:
        """Return the number of files whose ingestion is not finished."""
        return int((await self._tables.fetch(self.count_waiting, {}))[0][0])


def ingest_job(row: Row) -> IngestJob:
    """Convert a row to the claimed file. The row has its columns in the order of the arguments below."""
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
    """Implements `ChunkIndex` on a database that the caller closes. A backend's subclass adds the searches `match` and
    `nearest`."""

    number: str
    """The name of the column with a vector store's integer key."""
    hits_sql: str
    """The query that selects the chunks with the keys `:chunks`, if they belong to the vector stores `:stores`. Its
    columns are the chunk's integer key, the file, the file name, the attributes, the text and the vector store."""

    def __init__(self, tables: Tables, stores: VectorStores, *, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._stores = stores
        self._clock = clock

    async def known(self, owner: str, store_ids: Sequence[str]) -> list[KnownStore]:
        """Return the vector stores with these ids that belong to the owner."""
        named = {"owner": owner, "ids": list(store_ids), "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(KNOWN.format(number=self.number), named)
        return [KnownStore(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def hits(self, stores: Sequence[KnownStore], chunks: Sequence[int]) -> dict[int, FoundChunk]:
        """Return the text and the file of each chunk, by chunk number. The result lacks deleted chunks and chunks of
        other vector stores."""
        named = {"chunks": list(chunks), "stores": [store.number for store in stores]}
        rows = await self._tables.fetch(self.hits_sql, named)
        return {row[0]: FoundChunk(row[1], row[2], 0.0, json.loads(row[3]), row[4], row[5]) for row in rows}

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record the current time as the last use of these vector stores, which postpones their expiry."""
        await self._stores.touch(owner, store_ids)


def chunk_hits(rows: Sequence[Row]) -> list[ChunkHit]:
    """Convert rows, each with a chunk's number and score, to search hits."""
    return [ChunkHit(row[0], row[1]) for row in rows]
