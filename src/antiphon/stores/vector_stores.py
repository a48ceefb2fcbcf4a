"""Keeps the rows of vector stores, their files and their file batches, for any backend.

Lives here: the SQL that the backends share, the order of statements, cursors and pages. Not here: the SQL that differs
by backend (`sqlite/vectors/sql.py`, `postgres/vectors/sql.py`), and chunks, ingestion and searches, which each backend
implements.

Every transaction that adds or removes files updates the vector store's row first. So two concurrent changes never
deadlock, and a deleted vector store gets no more files.

Invariants: every transaction for a client checks the owner, in each statement or in an earlier statement that must find
a row. The database stores no file counts. Queries compute the counts from the files' rows.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.engine.ports.vector_stores import (
    Batch,
    Chunking,
    FileError,
    FileStateCounts,
    NewFile,
    StoreChanges,
    VectorFile,
    VectorStore,
)
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.attributes import AttributeSql
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.tables import (
    Row,
    RowsMissing,
    Statement,
    Tables,
    both_ways,
    changed,
    check_cursors,
    milliseconds,
    page_parameters,
)
from antiphon.types.search import Attributes

_ACTIVE_MS = 60_000
_TOUCHED = 10_000
_DAY = 86_400_000

Named = Mapping[str, Any]


class VectorSql(ABC):
    """The SQL statements of the vector stores in one backend."""

    def __init__(self, attributes: AttributeSql, *, number: str, store: str, batch_file: str) -> None:
        """`number`: the column with the number of a store, or of an ingested file. `store`: the column that refers to a
        store. `batch_file`: the SQL condition that joins a row of `vector_batch_files` (`m`) to its file (`f`)."""
        self._attributes = attributes
        self.count_chunks = f"""
SELECT CAST(coalesce(sum(f.chunks), 0) AS bigint)
FROM vector_files f JOIN vector_stores s ON s.{number} = f.{store} WHERE s.owner IN (:owners...)
"""
        mine = f"(SELECT {number} FROM vector_stores WHERE owner = :owner AND id = :id)"
        count = f"(SELECT count(*) FROM vector_files f WHERE f.{store} = s.{number} AND f.status = '{{0}}') AS {{0}}"
        counts = ", ".join(count.format(state) for state in ("in_progress", "completed", "failed", "cancelled"))
        stores = f"""
SELECT s.id, s.created_at, s.last_active_at, s.name, s.description, s.metadata, s.expires_days, s.expires_at,
       coalesce(s.expires_at <= now_ms(), false) AS expired, (
         SELECT CAST(coalesce(sum(usage_bytes), 0) AS bigint) FROM vector_files f WHERE f.{store} = s.{number}
       ) AS usage_bytes, {counts}
FROM vector_stores s WHERE s.owner = :owner
"""
        self.get_store = f"{stores} AND s.id = :id"
        at = f"(SELECT {number} FROM vector_stores WHERE owner = :owner AND id = "
        self.stores = both_ways(f"""{stores}
  AND (CAST(:low AS text) IS NULL OR s.{number} > {at} :low))
  AND (CAST(:high AS text) IS NULL OR s.{number} < {at} :high))
ORDER BY s.{number} {{order}} LIMIT :limit
""")
        self.update_store = f"""
UPDATE vector_stores SET
  name = CASE WHEN :new_name THEN :name ELSE name END, metadata = coalesce(:metadata, metadata),
  expires_days = CASE WHEN :clear THEN NULL ELSE coalesce(CAST(:days AS bigint), expires_days) END,
  last_active_at = now_ms(),
  expires_at = now_ms() + CASE WHEN :clear THEN NULL ELSE coalesce(:days, expires_days) END * {_DAY}
WHERE owner = :owner AND id = :id
"""
        used = f"last_active_at = now_ms(), expires_at = now_ms() + expires_days * {_DAY}"
        there = "(expires_at IS NULL OR expires_at > now_ms())"
        # Skips a store that another transaction has locked, because that transaction uses the store. Skips a store
        # whose last recorded use is less than `:active` milliseconds ago.
        self.touch = f"""
UPDATE vector_stores SET {used} WHERE {number} IN (
  SELECT {number} FROM vector_stores
  WHERE owner = :owner AND id IN (:ids...) AND {there} AND last_active_at <= now_ms() - CAST(:active AS bigint)
  FOR NO KEY UPDATE SKIP LOCKED
)
"""
        # Locks the store, so that no other transaction adds or removes a file until this transaction ends. Also records
        # the use of the store. Increments `version`, because the set of completed files may change.
        self.hold_used = f"""
UPDATE vector_stores SET version = version + 1, {used} WHERE owner = :owner AND id = :id AND {there}
"""
        self.hold = "UPDATE vector_stores SET version = version + 1 WHERE owner = :owner AND id = :id"
        self.lock = "SELECT 1 FROM vector_stores WHERE owner = :owner AND id = :id FOR NO KEY UPDATE"
        which = f"""
owner = :owner AND {number} IN (SELECT {store} FROM vector_files WHERE file_id = :file_id)
"""
        self.lock_stores_of_file = f"SELECT 1 FROM vector_stores WHERE {which} ORDER BY {number} FOR NO KEY UPDATE"
        self.bump_stores_of_file = f"UPDATE vector_stores SET version = version + 1 WHERE {which}"
        self.set_attributes = f"""
UPDATE vector_files SET attributes = :attributes WHERE {store} = {mine} AND file_id = :file_id
"""
        self.delete_file = f"DELETE FROM vector_files WHERE {store} = {mine} AND file_id = :file_id"
        self.delete_everywhere = f"""
DELETE FROM vector_files
WHERE file_id = :file_id AND {store} IN (SELECT {number} FROM vector_stores WHERE owner = :owner)
"""
        self.insert_batch = f"""
INSERT INTO vector_batches (id, {store}, created_at)
SELECT :batch_id, {number}, now_ms() FROM vector_stores WHERE owner = :owner AND id = :id
"""
        self.cancel_batch = f"UPDATE vector_batches SET cancelled = true WHERE {store} = {mine} AND id = :batch_id"
        files = f"""
SELECT f.file_id, s.id AS store_id, f.filename, f.status, f.created_at, f.usage_bytes, f.chunking, f.chunk_size,
       f.chunk_overlap, f.attributes, f.error_code, f.error_message
FROM vector_stores s JOIN vector_files f ON f.{store} = s.{number}
WHERE s.owner = :owner AND s.id = :id
"""
        self.get_file = f"{files} AND f.file_id = :file_id"
        cursor = f"(SELECT c.created_at, c.file_id FROM vector_files c WHERE c.{store} = s.{number} AND c.file_id = "
        self.files = both_ways(f"""{files}
  AND (CAST(:state AS text) IS NULL OR f.status = :state)
  AND (CAST(:batch_id AS text) IS NULL OR EXISTS (
    SELECT 1 FROM vector_batch_files m WHERE m.batch_id = :batch_id AND {batch_file}
  ))
  AND (CAST(:low AS text) IS NULL OR (f.created_at, f.file_id) > {cursor} :low))
  AND (CAST(:high AS text) IS NULL OR (f.created_at, f.file_id) < {cursor} :high))
ORDER BY f.created_at {{order}}, f.file_id {{order}} LIMIT :limit
""")
        states = ", ".join(
            f"count(f.file_id) FILTER (WHERE f.status = '{state}') AS {state}"
            for state in ("in_progress", "completed", "failed", "cancelled")
        )
        self.get_batch = f"""
SELECT b.id, s.id AS store_id, b.created_at, b.cancelled AS stopped, {states}
FROM vector_stores s JOIN vector_batches b ON b.{store} = s.{number}
LEFT JOIN vector_batch_files m ON m.batch_id = b.id LEFT JOIN vector_files f ON {batch_file}
WHERE s.owner = :owner AND s.id = :id AND b.id = :batch_id
GROUP BY b.id, s.id
"""

    drop_attributes: str
    insert_attribute: str
    """Inserts the attribute `:key` of the file `:file_id` with its `:kind` and its value (`:text` or `:number`)."""
    file_text: str
    """Selects the texts of at most `:limit` chunks of a file, from chunk number `:first` on. No row means that the file
    does not exist. One row without a text means that the file is not completed, or has no chunks in this range."""

    @abstractmethod
    def create(self, named: Named) -> list[Statement]:
        """Return the statements that create a store with the values in `named`."""

    @abstractmethod
    def delete(self, named: Named) -> list[Statement]:
        """Return the statements that delete a store with its files and chunks. One statement has `rows` set, so the
        transaction fails when the store does not exist."""

    @abstractmethod
    def add_files(self, named: Named, files: Sequence[Named]) -> list[Statement]:
        """Return the statements that add files to a store, and to the batch `batch_id` if it is set. An earlier
        statement of the same transaction locks the store. A file that is already in the store is ingested again, and
        stays in its batches."""

    def attributes(self, named: Named, attributes: Attributes) -> list[Statement]:
        """Return the statements that replace a file's attributes."""
        rows = [{**named, **row} for row in self._attributes.rows(attributes)]
        return [Statement(self.drop_attributes, named), Statement(self.insert_attribute, rows, many=True)]

    @abstractmethod
    def clear(self, which: str, named: Named) -> list[Statement]:
        """Return the statements that mark the chunks of a removed file for deletion by a sweep. `which` is `one` (the
        file in one store) or `all` (the file in all the owner's stores)."""

    @abstractmethod
    def cancel_files(self, named: Named) -> list[Statement]:
        """Return the statements that cancel the files of a batch whose ingestion is not finished."""


class VectorStores:
    """Implements the API's operations on vector stores, their files and batches, in tables that the caller closes.
    Changes are durable when a method returns. Every method raises `StoreError` when the database fails. No method
    blocks the event loop.

    This class calls `on_work` when workers have files to ingest or chunks to delete. This class calls `on_deleted` with
    the id of a deleted store.
    """

    def __init__(self, tables: Tables, keys: IdempotencyStore, sql: VectorSql, *, clock: Clock = now) -> None:
        """`clock`: the source of the current time for a database without a clock (SQLite)."""
        self._tables = tables
        self._keys = keys
        self._sql = sql
        self._clock = clock
        self.noted_uses: dict[tuple[str, str], int] = {}
        """The time in milliseconds of each store's last recorded use, by owner and id. `touch` updates a store's row at
        most once a minute."""
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
        """Create a store with these files, which workers then ingest. Raises `AlreadyMade` with the store's id when an
        earlier request with the same idempotency key `once` created the store."""
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
        """Return the id of the object that an earlier request with the same idempotency key created, or None. Call this
        before reading the objects that the request refers to, because they may be deleted by now."""
        return await self._keys.made(once)

    async def get(self, owner: str, store_id: str) -> VectorStore | None:
        """Return the vector store, or None if the owner has no such store."""
        rows = await self._tables.fetch(self._sql.get_store, self._named(owner, store_id))
        return _vector_store(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> Page[VectorStore]:
        """Return a page of the owner's vector stores by creation time. An unknown cursor raises `InvalidRequest`."""
        await check_cursors(page, partial(self.get, owner), "There is no vector store with this id")
        rows = await self._tables.fetch(
            self._sql.stores[page.backward], self._named(owner, "", **page_parameters(page))
        )
        return Page(page.shown([_vector_store(row) for row in rows]), has_more=len(rows) > page.limit)

    async def update(self, owner: str, store_id: str, changes: StoreChanges) -> VectorStore | None:
        """Change the store's fields and return the store, or None when the store does not exist. The change counts as a
        use, which postpones the store's expiry."""
        given = {"name": changes.name, "metadata": changes.metadata, "days": changes.expires_days}
        named = self._named(owner, store_id, new_name=changes.name is not None, clear=changes.clear_expiry, **given)
        if not await self._changed([Statement(self._sql.update_store, named, rows=1)]):
            return None
        return await self.get(owner, store_id)

    async def delete(self, owner: str, store_id: str) -> bool:
        """Delete the store with its files and chunks. Returns False when the store does not exist."""
        deleted = await self._changed(self._sql.delete(self._named(owner, store_id)), work=True)
        if deleted:
            self.noted_uses.pop((owner, store_id), None)
            self.on_deleted(store_id)
        return deleted

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Record the current time as the last use of these stores, with a precision of one minute. A use postpones a
        store's expiry."""
        at = milliseconds(self._clock())
        due = [one for one in store_ids if at - self.noted_uses.get((owner, one), 0) >= _ACTIVE_MS]
        if due:
            if len(self.noted_uses) > _TOUCHED:
                self.noted_uses.clear()
            self.noted_uses.update({(owner, one): at for one in due})
            named = self._named(owner, "", ids=due, active=_ACTIVE_MS)
            await self._tables.run([Statement(self._sql.touch, named)], again=True)

    async def count_chunks(self, owners: Sequence[str]) -> int:
        """Return the number of chunks in all vector stores of these owners."""
        return (await self._tables.fetch(self._sql.count_chunks, {"owners": list(owners)}))[0][0]  # type: ignore[no-any-return]

    async def add_files(
        self,
        owner: str,
        store_id: str,
        files: Sequence[NewFile],
        *,
        batch_id: str | None = None,
        once: OnceOnly | None = None,
    ) -> bool:
        """Add files to the store, which workers then ingest. Creates a batch of these files if `batch_id` is set.
        Returns False when the store does not exist.

        If a file is already in the store, workers ingest the file again. Searches do not find the file until the new
        ingestion is complete. Raises `AlreadyMade` when an earlier request with the same idempotency key `once` added
        the files. The exception has the id of the batch or of the first file.
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
        """Return the file in this store, or None if the store has no such file."""
        rows = await self._tables.fetch(self._sql.get_file, self._named(owner, store_id, file_id=file_id))
        return _vector_file(rows[0]) if rows else None

    async def list_files(
        self, owner: str, store_id: str, page: PageQuery, *, state: str | None = None, batch_id: str | None = None
    ) -> Page[VectorFile] | None:
        """Return a page of the store's files, or of the batch's files if `batch_id` is set. Returns None when the store
        or the batch does not exist. An unknown cursor raises `InvalidRequest`."""
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
        """Replace a file's attributes. Returns False when the store has no such file."""
        named = self._named(owner, store_id, file_id=file_id, attributes=_attributes_json(attributes))
        unit = [Statement(self._sql.lock, named, into=[]), Statement(self._sql.set_attributes, named, rows=1)]
        return await self._changed([*unit, *self._sql.attributes(named, attributes)])

    async def remove_file(self, owner: str, store_id: str, file_id: str) -> bool:
        """Remove a file from the store. Returns False when the file is not in the store."""
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
        """Return the batch with the counts of its files, or None if the store has no such batch."""
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
        done = await changed(self._tables, *unit)
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
