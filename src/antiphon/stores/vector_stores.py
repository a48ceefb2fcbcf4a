"""What it means to keep vector stores: the `VectorStores` port over SQLite.

Lives here: the SQL of stores, files and batches by name. Not here: chunks and ingestion (`ingestion.py`), searching
(`chunk_index.py`), filters as SQL (`vector_filters.py`).

Invariant: counts and states are never kept beside what they count; they are read from the files' rows. Whatever takes a
file away notes its number in `vector_trash` in the same unit, and `Ingestion.sweep` clears its chunks away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from antiphon.engine.knowledge import (
    Batch,
    Chunking,
    Counts,
    FileError,
    FilePage,
    NewFile,
    StoreChanges,
    StorePage,
    VectorFile,
    VectorStore,
)
from antiphon.engine.ports import PageQuery
from antiphon.errors import InvalidRequest, StoreError
from antiphon.ids import Clock, is_id, now
from antiphon.stores.sqlite_readers import Row, SqliteReaders
from antiphon.stores.sqlite_writer import RowsMissing, SqliteWriter, Statement
from antiphon.stores.vector_filters import attribute_rows
from antiphon.types.search import Attributes

__all__ = ["BUMP", "DELETE_ALL", "TRASH_FILES", "SqliteVectorStores", "index_table"]

_ACTIVE_MS = 60_000

_Unit = list[Statement]

INDEX_TABLE = """
CREATE VIRTUAL TABLE {table} USING fts5(
  title, text, content='', columnsize=1, tokenize="porter unicode61 remove_diacritics 2"
)
"""
# BM25 takes a word that most documents have for one that says nothing. In a store of three chunks that is every word,
# and all scores would be nothing. So each index begins with some documents that no search finds: their numbers belong
# to no file. In a store of hundreds of chunks they make no difference.
INSERT_PADDING = "INSERT INTO {table} (rowid, title, text) VALUES (?, '', ?)"
_PADDING = [(-number, "zzpadding " * 100) for number in range(1, 17)]
DELETE_ALL = "INSERT INTO {table} ({table}) VALUES ('delete-all')"
DROP_INDEX = "DROP TABLE IF EXISTS {table}"

INSERT_STORE = """
INSERT INTO vector_stores (id, owner, name, description, metadata, created_at, last_active_at, expires_days, expires_at)
VALUES (:id, :owner, :name, :description, :metadata, :at, :at, :days, :at + :days * 86400000)
"""
_COUNT = "ifnull((SELECT count(*) FROM vector_files f WHERE f.store_no = s.no AND f.status = '{}'), 0)"
_STORE = f"""
SELECT s.id, s.created_at, s.last_active_at, s.name, s.description, s.metadata, s.expires_days, s.expires_at,
       ifnull((SELECT sum(usage_bytes) FROM vector_files f WHERE f.store_no = s.no), 0),
       {_COUNT.format("in_progress")}, {_COUNT.format("completed")}, {_COUNT.format("failed")},
       {_COUNT.format("cancelled")}, s.no
FROM vector_stores s
"""
GET_STORE = _STORE + "WHERE s.id = :id AND s.owner = :owner"
_PAGE = """
WHERE s.owner = :owner
  AND (:low IS NULL OR s.no > (SELECT no FROM vector_stores WHERE id = :low AND owner = :owner))
  AND (:high IS NULL OR s.no < (SELECT no FROM vector_stores WHERE id = :high AND owner = :owner))
ORDER BY s.no {} LIMIT :most
"""
STORES_FORWARD, STORES_BACKWARD = _STORE + _PAGE.format("ASC"), _STORE + _PAGE.format("DESC")
UPDATE_STORE = """
UPDATE vector_stores SET
  name = iif(:new_name, :name, name), metadata = ifnull(:metadata, metadata),
  expires_days = iif(:clear, NULL, ifnull(:days, expires_days)),
  last_active_at = :at,
  expires_at = :at + iif(:clear, NULL, ifnull(:days, expires_days)) * 86400000
WHERE id = :id AND owner = :owner
"""
TOUCH_STORES = """
UPDATE vector_stores SET last_active_at = :at, expires_at = :at + expires_days * 86400000
WHERE id IN (SELECT value FROM json_each(:ids)) AND owner = :owner AND (expires_at IS NULL OR expires_at > :at)
"""
# In every unit that changes which files are completed.
BUMP = "UPDATE vector_stores SET version = version + 1 WHERE {which}"
TRASH_FILES = """
INSERT OR IGNORE INTO vector_trash (file_no, store_id, title)
SELECT f.no, {whose}, f.title FROM vector_files f JOIN vector_stores s ON s.no = f.store_no WHERE {which}
"""
ORPHAN_TRASH = "UPDATE vector_trash SET store_id = NULL WHERE store_id = :id"
DELETE_STORE = "DELETE FROM vector_stores WHERE id = :id AND owner = :owner"

# A file that is there already becomes another ingestion of itself: its number changes, and its batches keep it.
_NEW_NUMBER = "UPDATE file_numbers SET last = last + 1"
INSERT_FILE = """
INSERT INTO vector_files (no, store_no, file_id, filename, status, attributes, chunking, chunk_size, chunk_overlap,
                          created_at)
SELECT (SELECT last FROM file_numbers), no, :file_id, :filename, 'in_progress', :attributes, :chunking, :size, :overlap,
       :at
FROM vector_stores WHERE id = :id AND owner = :owner
ON CONFLICT (store_no, file_id) DO UPDATE SET
  no = excluded.no, filename = excluded.filename, title = '', status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, usage_bytes = 0,
  embedding_model = NULL, claim = NULL, lease_until = 0, attempts = 0
"""
INSERT_ATTRIBUTE = """
INSERT INTO file_attributes (store_no, key, kind, value, file_no)
SELECT f.store_no, :key, :kind, :value, f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
"""
DROP_ATTRIBUTES = """
DELETE FROM file_attributes WHERE file_no IN (
  SELECT f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
  WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
)
"""
SET_ATTRIBUTES = """
UPDATE vector_files SET attributes = :attributes
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_FILE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_EVERYWHERE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no IN (SELECT no FROM vector_stores WHERE owner = :owner)
"""
INSERT_BATCH = """
INSERT INTO vector_batches (id, store_no, created_at)
SELECT :batch_id, no, :at FROM vector_stores WHERE id = :id AND owner = :owner
"""
INSERT_BATCH_FILE = (
    "INSERT OR IGNORE INTO vector_batch_files (batch_id, file_no) SELECT :batch_id, last FROM file_numbers"
)

_FILE = """
INSERT INTO vector_files (no, store_no, file_id, filename, status, attributes, chunking, chunk_size, chunk_overlap,
                          created_at)
SELECT (SELECT last FROM file_numbers), no, :file_id, :filename, 'in_progress', :attributes, :chunking, :size, :overlap,
       :at
FROM vector_stores WHERE id = :id AND owner = :owner
ON CONFLICT (store_no, file_id) DO UPDATE SET
  no = excluded.no, filename = excluded.filename, title = '', status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, usage_bytes = 0,
  embedding_model = NULL, claim = NULL, lease_until = 0, attempts = 0
"""
INSERT_ATTRIBUTE = """
INSERT INTO file_attributes (store_no, key, kind, value, file_no)
SELECT f.store_no, :key, :kind, :value, f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
"""
DROP_ATTRIBUTES = """
DELETE FROM file_attributes WHERE file_no IN (
  SELECT f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
  WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
)
"""
SET_ATTRIBUTES = """
UPDATE vector_files SET attributes = :attributes
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_FILE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_EVERYWHERE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no IN (SELECT no FROM vector_stores WHERE owner = :owner)
"""
INSERT_BATCH = """
INSERT INTO vector_batches (id, store_no, created_at)
SELECT :batch_id, no, :at FROM vector_stores WHERE id = :id AND owner = :owner
"""
INSERT_BATCH_FILE = (
    "INSERT OR IGNORE INTO vector_batch_files (batch_id, file_no) SELECT :batch_id, last FROM file_numbers"
)
# A file that is added again stays in the batches it was added with.
KEEP_BATCHES = """
INSERT INTO kept_batches (batch_id)
SELECT b.batch_id FROM vector_batch_files b JOIN vector_files f ON f.no = b.file_no
JOIN vector_stores s ON s.no = f.store_no
WHERE f.file_id = :file_id AND s.id = :id AND s.owner = :owner
"""

_FILE = """
SELECT f.file_id, s.id, f.filename, f.status, f.created_at, f.usage_bytes, f.chunking, f.chunk_size, f.chunk_overlap,
       f.attributes, f.error_code, f.error_message, f.no, f.chunks
FROM vector_stores s JOIN vector_files f ON f.store_no = s.no
"""
GET_FILE = _FILE + "WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id"
_CURSOR = """(f.created_at, f.file_id) {} (
    SELECT c.created_at, c.file_id FROM vector_files c WHERE c.store_no = s.no AND c.file_id = :{}
  )"""
_FILE_PAGE = f"""
WHERE s.id = :id AND s.owner = :owner AND (:state IS NULL OR f.status = :state)
  AND (:batch_id IS NULL OR f.no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id))
  AND (:low IS NULL OR {_CURSOR.format(">", "low")})
  AND (:high IS NULL OR {_CURSOR.format("<", "high")})
ORDER BY f.created_at {{0}}, f.file_id {{0}} LIMIT :most
"""
FILES_FORWARD, FILES_BACKWARD = _FILE + _FILE_PAGE.format("ASC"), _FILE + _FILE_PAGE.format("DESC")

GET_BATCH = """
SELECT b.id, s.id, b.created_at, b.cancelled,
       count(f.no) FILTER (WHERE f.status = 'in_progress'), count(f.no) FILTER (WHERE f.status = 'completed'),
       count(f.no) FILTER (WHERE f.status = 'failed'), count(f.no) FILTER (WHERE f.status = 'cancelled')
FROM vector_batches b JOIN vector_stores s ON s.no = b.store_no
LEFT JOIN vector_batch_files m ON m.batch_id = b.id LEFT JOIN vector_files f ON f.no = m.file_no
WHERE b.id = :batch_id AND s.id = :id AND s.owner = :owner
GROUP BY b.id
"""
CANCEL_BATCH = """
UPDATE vector_batches SET cancelled = 1
WHERE id = :batch_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
# A claim that is taken away: whoever makes the chunks finds out with the next thing it wants to write.
CANCEL_FILES = """
UPDATE vector_files SET status = 'cancelled', claim = NULL, usage_bytes = 0
WHERE status = 'in_progress' AND no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id)
"""
FILE_TEXT = "SELECT text FROM chunks WHERE id >= :first AND id < :end ORDER BY id LIMIT :most"


def index_table(store_id: str) -> str:
    """The name of a store's full-text index. Ids of ours are letters, digits and underscores."""
    if not is_id(store_id, "vs"):
        raise StoreError("That is no id of a vector store.")
    return f"fts_{store_id}"


class SqliteVectorStores:
    """`VectorStores` on a writer and readers that somebody else owns and closes.

    `on_work` is called when there are files to ingest.
    """

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders, clock: Clock = now) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._touched: dict[str, int] = {}
        self.on_work: Callable[[], None] = lambda: None

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
    ) -> VectorStore:
        """Make a store; see `VectorStores.create`."""
        at = self._now()
        named = {
            "id": store_id,
            "owner": owner,
            "name": name,
            "description": description,
            "metadata": metadata,
            "at": at,
            "days": expires_days,
        }
        table = index_table(store_id)
        unit = [
            Statement(INSERT_STORE, named),
            Statement(INDEX_TABLE.format(table=table)),
            Statement(INSERT_PADDING.format(table=table), _PADDING, many=True),
        ]
        unit += self._additions(owner, store_id, files, None, at)
        await self._writer.run(unit)
        if files:
            self.on_work()
        made = await self.get(owner, store_id)
        if made is None:
            raise StoreError("The vector store was deleted while it was made.")
        return made

    async def get(self, owner: str, store_id: str) -> VectorStore | None:
        """The store, or None."""
        rows = await self._readers.fetch(GET_STORE, {"owner": owner, "id": store_id})
        return self._store(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> StorePage:
        """A page of the owner's stores, by their time of creation."""
        low, high = (page.before, page.after) if page.descending else (page.after, page.before)
        for name in ("after", "before"):
            cursor = getattr(page, name)
            if cursor is not None and await self.get(owner, cursor) is None:
                raise InvalidRequest(f"There is no vector store with this id: '{name}'.", param=name)
        turned = page.before is not None and page.after is None
        rows = await self._readers.fetch(
            STORES_BACKWARD if page.descending != turned else STORES_FORWARD,
            {"owner": owner, "low": low, "high": high, "most": page.limit + 1},
        )
        shown = [self._store(row) for row in rows[: page.limit]]
        if turned:
            shown.reverse()
        return StorePage(tuple(shown), has_more=len(rows) > page.limit)

    async def update(self, owner: str, store_id: str, changes: StoreChanges) -> VectorStore | None:
        """Change the store; see `VectorStores.update`."""
        named = {
            "id": store_id,
            "owner": owner,
            "new_name": changes.name is not None,
            "name": changes.name,
            "metadata": changes.metadata,
            "days": changes.expires_days,
            "clear": changes.clear_expiry,
            "at": self._now(),
        }
        try:
            await self._writer.run([Statement(UPDATE_STORE, named, rows=1)])
        except RowsMissing:
            return None
        return await self.get(owner, store_id)

    async def delete(self, owner: str, store_id: str) -> bool:
        """Delete the store with everything in it; False when there is none."""
        named = {"id": store_id, "owner": owner}
        unit = [
            Statement(TRASH_FILES.format(whose="NULL", which="s.id = :id AND s.owner = :owner"), named),
            Statement(DELETE_STORE, named, rows=1),
            Statement(ORPHAN_TRASH, named),
            Statement(DROP_INDEX.format(table=index_table(store_id))),
        ]
        return await self._run(unit, work=True)

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now (to a minute)."""
        at = self._now()
        due = [one for one in store_ids if at - self._touched.get(one, 0) >= _ACTIVE_MS]
        if due:
            if len(self._touched) > 10_000:
                self._touched.clear()
            self._touched.update(dict.fromkeys(due, at))
            await self._writer.run([Statement(TOUCH_STORES, {"owner": owner, "ids": json.dumps(due), "at": at})])

    async def add_files(
        self, owner: str, store_id: str, files: Sequence[NewFile], *, batch_id: str | None = None
    ) -> bool:
        """Add files for ingestion; see `VectorStores.add_files`."""
        at = self._now()
        named = {"id": store_id, "owner": owner, "batch_id": batch_id, "at": at, "ids": json.dumps([store_id])}
        unit = [Statement(TOUCH_STORES, named, rows=1), Statement(BUMP.format(which="id = :id"), named)]
        if batch_id is not None:
            unit.append(Statement(INSERT_BATCH, named, rows=1))
        unit += self._additions(owner, store_id, files, batch_id, at)
        return await self._run(unit, work=True)

    async def get_file(self, owner: str, store_id: str, file_id: str) -> VectorFile | None:
        """The file in the store, or None."""
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": store_id, "file_id": file_id})
        return _file(rows[0]) if rows else None

    async def list_files(
        self, owner: str, store_id: str, page: PageQuery, *, state: str | None = None, batch_id: str | None = None
    ) -> FilePage | None:
        """A page of files; see `VectorStores.list_files`."""
        if batch_id is not None:
            if await self.get_batch(owner, store_id, batch_id) is None:
                return None
        elif await self.get(owner, store_id) is None:
            return None
        low, high = (page.before, page.after) if page.descending else (page.after, page.before)
        for name in ("after", "before"):
            cursor = getattr(page, name)
            if cursor is not None and await self.get_file(owner, store_id, cursor) is None:
                raise InvalidRequest(f"There is no file with this id in the vector store: '{name}'.", param=name)
        turned = page.before is not None and page.after is None
        rows = await self._readers.fetch(
            FILES_BACKWARD if page.descending != turned else FILES_FORWARD,
            {
                "owner": owner,
                "id": store_id,
                "state": state,
                "batch_id": batch_id,
                "low": low,
                "high": high,
                "most": page.limit + 1,
            },
        )
        shown = [_file(row) for row in rows[: page.limit]]
        if turned:
            shown.reverse()
        return FilePage(tuple(shown), has_more=len(rows) > page.limit)

    async def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Attributes) -> bool:
        """Replace a file's attributes; False when there is none."""
        named = {"owner": owner, "id": store_id, "file_id": file_id, "attributes": _json(attributes)}
        unit = [Statement(SET_ATTRIBUTES, named, rows=1), Statement(DROP_ATTRIBUTES, named)]
        unit += _attributes(owner, store_id, file_id, attributes)
        return await self._run(unit)

    async def remove_file(self, owner: str, store_id: str, file_id: str) -> bool:
        """Take a file out of the store; False when there is none."""
        named = {"owner": owner, "id": store_id, "file_id": file_id}
        bump = Statement(BUMP.format(which="id = :id AND owner = :owner"), named)
        return await self._run([bump, _trash_one(named), Statement(DELETE_FILE, named, rows=1)], work=True)

    async def forget_file(self, owner: str, file_id: str) -> None:
        """Take a file out of all the owner's stores: it was deleted."""
        named = {"owner": owner, "file_id": file_id}
        which = "f.file_id = :file_id AND s.owner = :owner"
        having = "owner = :owner AND no IN (SELECT store_no FROM vector_files WHERE file_id = :file_id)"
        unit = [
            Statement(BUMP.format(which=having), named),
            Statement(TRASH_FILES.format(whose="s.id", which=which), named),
            Statement(DELETE_EVERYWHERE, named),
        ]
        await self._run(unit, work=True)

    async def get_batch(self, owner: str, store_id: str, batch_id: str) -> Batch | None:
        """The batch, or None."""
        rows = await self._readers.fetch(GET_BATCH, {"owner": owner, "id": store_id, "batch_id": batch_id})
        if not rows:
            return None
        found, store, created, cancelled, running, completed, failed, stopped = rows[0]
        return Batch(found, store, created / 1000, bool(cancelled), Counts(running, completed, failed, stopped))

    async def cancel_batch(self, owner: str, store_id: str, batch_id: str) -> bool:
        """Cancel what of the batch is still in progress; False when there is none."""
        named = {"owner": owner, "id": store_id, "batch_id": batch_id}
        which = (
            "s.id = :id AND s.owner = :owner AND f.status = 'in_progress' "
            "AND f.no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id)"
        )
        unit = [
            Statement(CANCEL_BATCH, named, rows=1),
            Statement(TRASH_FILES.format(whose="s.id", which=which), named),
            Statement(CANCEL_FILES, named),
        ]
        return await self._run(unit, work=True)

    async def file_text(self, owner: str, store_id: str, file_id: str, first: int, most: int) -> tuple[str, ...] | None:
        """The text of some of the file's chunks; see `VectorStores.file_text`."""
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": store_id, "file_id": file_id})
        if not rows:
            return None
        if rows[0][3] != "completed":
            return ()
        number = rows[0][12] << 20
        texts = await self._readers.fetch(FILE_TEXT, {"first": number + first, "end": number + (1 << 20), "most": most})
        return tuple([row[0] for row in texts])

    def _additions(self, owner: str, store_id: str, files: Sequence[NewFile], batch_id: str | None, at: int) -> _Unit:
        unit: _Unit = []
        for file in files:
            named = {
                "owner": owner,
                "id": store_id,
                "file_id": file.file_id,
                "filename": file.filename,
                "attributes": _json(file.attributes),
                "chunking": file.chunking.kind,
                "size": file.chunking.size,
                "overlap": file.chunking.overlap,
                "batch_id": batch_id,
                "at": at,
            }
            unit += [
                _trash_one(named),
                Statement(_NEW_NUMBER),
                Statement(INSERT_FILE, named, rows=1),
                Statement(DROP_ATTRIBUTES, named),
            ]
            if batch_id is not None:
                unit.append(Statement(INSERT_BATCH_FILE, named))
            unit += _attributes(owner, store_id, file.file_id, file.attributes)
        return unit

    def _store(self, row: Row) -> VectorStore:
        expires_at = row[7]
        return VectorStore(
            id=row[0],
            created_at=row[1] / 1000,
            last_active_at=row[2] / 1000,
            name=row[3],
            description=row[4],
            metadata=row[5],
            expires_days=row[6],
            expires_at=None if expires_at is None else expires_at / 1000,
            expired=expires_at is not None and expires_at <= self._now(),
            usage_bytes=row[8],
            counts=Counts(row[9], row[10], row[11], row[12]),
        )

    async def _run(self, unit: _Unit, *, work: bool = False) -> bool:
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        if work:
            self.on_work()
        return True

    def _now(self) -> int:
        return round(self._clock() * 1000)


def _trash_one(named: dict[str, Any]) -> Statement:
    which = "f.file_id = :file_id AND s.id = :id AND s.owner = :owner"
    return Statement(TRASH_FILES.format(whose="s.id", which=which), named)


def _attributes(owner: str, store_id: str, file_id: str, attributes: Attributes) -> _Unit:
    rows = [
        {"owner": owner, "id": store_id, "file_id": file_id, "key": key, "kind": kind, "value": value}
        for key, kind, value in attribute_rows(attributes)
    ]
    return [Statement(INSERT_ATTRIBUTE, rows, many=True)] if rows else []


def _file(row: Row) -> VectorFile:
    return VectorFile(
        file_id=row[0],
        store_id=row[1],
        filename=row[2],
        state=row[3],
        created_at=row[4] / 1000,
        usage_bytes=row[5],
        chunking=Chunking(row[6], row[7], row[8]),
        attributes=json.loads(row[9]),
        error=None if row[10] is None else FileError(row[10], row[11]),
    )


def _json(attributes: Attributes) -> bytes:
    return json.dumps(dict(attributes), ensure_ascii=False).encode()
