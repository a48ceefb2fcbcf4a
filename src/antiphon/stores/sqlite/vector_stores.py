"""What it means to keep vector stores: the `VectorStores` port over SQLite.

Lives here: stores, files and batches. Not here: their SQL (`vector_store_sql.py`), chunks and ingestion
(`ingestion.py`), searching (`chunk_index.py`), filters as SQL (`vector_filters.py`).

Invariant: counts and states are never kept beside what they count; they are read from the files' rows. Whatever takes a
file away notes its number in `vector_trash` in the same unit, and `Ingestion.sweep` clears its chunks away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import PageQuery
from antiphon.engine.ports.vector_stores import (
    Batch,
    FilePage,
    NewFile,
    StoreChanges,
    StorePage,
    VectorFile,
    VectorStore,
)
from antiphon.errors import StoreError
from antiphon.ids import Clock, is_id, now
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.pages import check_cursors
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.vector_filters import attribute_rows
from antiphon.stores.sqlite.vector_store_sql import (
    BUMP,
    CANCEL_BATCH,
    CANCEL_FILES,
    DELETE_EVERYWHERE,
    DELETE_FILE,
    DELETE_STORE,
    DROP_ATTRIBUTES,
    DROP_INDEX,
    FILE_TEXT,
    FILES_BACKWARD,
    FILES_FORWARD,
    GET_BATCH,
    GET_FILE,
    GET_STORE,
    INDEX_TABLE,
    INSERT_ATTRIBUTE,
    INSERT_BATCH,
    INSERT_BATCH_FILE,
    INSERT_FILE,
    INSERT_PADDING,
    INSERT_STORE,
    NEW_NUMBER,
    ORPHAN_TRASH,
    PADDING,
    SET_ATTRIBUTES,
    STORES_BACKWARD,
    STORES_FORWARD,
    TOUCH_STORES,
    TRASH_FILES,
    UPDATE_STORE,
)
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import RowsMissing, Statement, asked, milliseconds
from antiphon.stores.vector_rows import attributes_json, batch, vector_file, vector_store
from antiphon.types.search import Attributes

INDEX_PREFIX = "fts_"

_ACTIVE_MS = 60_000

_Unit = list[Statement]


def index_table(store_id: str) -> str:
    """The name of a store's full-text index. Ids of ours are letters, digits and underscores."""
    if not is_id(store_id, "vs"):
        raise StoreError("That is no id of a vector store.")
    return INDEX_PREFIX + store_id


def _deletion(owner: str, store_id: str, rows: int | None = None) -> _Unit:
    """A store goes with everything in it; `rows`: how many stores that must be."""
    named = {"id": store_id, "owner": owner}
    return [
        Statement(TRASH_FILES.format(whose="NULL", which="s.id = :id AND s.owner = :owner"), named),
        Statement(DELETE_STORE, named, rows=rows),
        Statement(ORPHAN_TRASH, named),
        Statement(DROP_INDEX.format(table=index_table(store_id))),
    ]


class SqliteVectorStores:
    """`VectorStores` on a writer and readers that somebody else owns and closes.

    `on_work` is called when there are files to ingest, `on_deleted` with the id of a store that is gone.
    """

    def __init__(
        self, writer: SqliteWriter, readers: SqliteReaders, clock: Clock = now, *, keys: IdempotencyKeys | None = None
    ) -> None:
        self._keys = keys or IdempotencyKeys(SqliteTables(writer, readers), clock=clock)
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._touched: dict[str, int] = {}
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
            Statement(NEW_NUMBER),
            Statement(INSERT_STORE, named, rows=1),
            Statement(INDEX_TABLE.format(table=table)),
            Statement(INSERT_PADDING.format(table=table), PADDING, many=True),
        ]
        unit += self._additions(owner, store_id, files, None, at)
        await self._keys.make(once, store_id, unit, _deletion(owner, store_id))
        if files:
            self.on_work()
        made = await self.get(owner, store_id)
        if made is None:
            raise StoreError("The vector store was deleted while it was made.")
        return made

    async def made(self, once: OnceOnly) -> str | None:
        """What this very request made before."""
        return await self._keys.made(once)

    async def get(self, owner: str, store_id: str) -> VectorStore | None:
        """The store, or None."""
        rows = await self._readers.fetch(GET_STORE, {"owner": owner, "id": store_id})
        return self._store(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> StorePage:
        """A page of the owner's stores, by their time of creation."""
        await check_cursors(page, partial(self.get, owner), "There is no vector store with this id")
        sql = STORES_BACKWARD if page.backward else STORES_FORWARD
        rows = await self._readers.fetch(sql, {"owner": owner, **asked(page)})
        return StorePage(page.shown([self._store(row) for row in rows]), has_more=len(rows) > page.limit)

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
        deleted = await self._run(_deletion(owner, store_id, rows=1), work=True)
        if deleted:
            self._touched.pop(store_id, None)
            self.on_deleted(store_id)
        return deleted

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
        self,
        owner: str,
        store_id: str,
        files: Sequence[NewFile],
        *,
        batch_id: str | None = None,
        once: OnceOnly | None = None,
    ) -> bool:
        """Add files for ingestion; see `VectorStores.add_files`."""
        at = self._now()
        named = {"id": store_id, "owner": owner, "batch_id": batch_id, "at": at, "ids": json.dumps([store_id])}
        unit = [Statement(TOUCH_STORES, named, rows=1), Statement(BUMP.format(which="id = :id"), named)]
        if batch_id is not None:
            unit.append(Statement(INSERT_BATCH, named, rows=1))
        unit += self._additions(owner, store_id, files, batch_id, at)
        try:
            # A late commit stays: what a file was in the store before is lost by then, and who tries again adds the
            # same files once more, which changes nothing.
            await self._keys.make(once, batch_id or files[0].file_id, unit, [])
        except RowsMissing:
            return False
        self.on_work()
        return True

    async def get_file(self, owner: str, store_id: str, file_id: str) -> VectorFile | None:
        """The file in the store, or None."""
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": store_id, "file_id": file_id})
        return vector_file(rows[0]) if rows else None

    async def list_files(
        self, owner: str, store_id: str, page: PageQuery, *, state: str | None = None, batch_id: str | None = None
    ) -> FilePage | None:
        """A page of files; see `VectorStores.list_files`."""
        if batch_id is not None:
            if await self.get_batch(owner, store_id, batch_id) is None:
                return None
        elif await self.get(owner, store_id) is None:
            return None
        find = partial(self.get_file, owner, store_id)
        await check_cursors(page, find, "There is no file with this id in the vector store")
        named = {"owner": owner, "id": store_id, "state": state, "batch_id": batch_id, **asked(page)}
        rows = await self._readers.fetch(FILES_BACKWARD if page.backward else FILES_FORWARD, named)
        return FilePage(page.shown([vector_file(row) for row in rows]), has_more=len(rows) > page.limit)

    async def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Attributes) -> bool:
        """Replace a file's attributes; False when there is none."""
        named = {"owner": owner, "id": store_id, "file_id": file_id, "attributes": attributes_json(attributes)}
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
        return batch(rows[0]) if rows else None

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

    async def file_text(
        self, owner: str, store_id: str, file_id: str, first: int, limit: int
    ) -> tuple[str, ...] | None:
        """The text of some of the file's chunks; see `VectorStores.file_text`."""
        rows = await self._readers.fetch(GET_FILE, {"owner": owner, "id": store_id, "file_id": file_id})
        if not rows:
            return None
        if rows[0]["status"] != "completed":
            return ()
        number = rows[0]["no"] << 20
        texts = await self._readers.fetch(
            FILE_TEXT, {"first": number + first, "end": number + (1 << 20), "limit": limit}
        )
        return tuple([row[0] for row in texts])

    def _additions(self, owner: str, store_id: str, files: Sequence[NewFile], batch_id: str | None, at: int) -> _Unit:
        unit: _Unit = []
        for file in files:
            named = {
                "owner": owner,
                "id": store_id,
                "file_id": file.file_id,
                "filename": file.filename,
                "attributes": attributes_json(file.attributes),
                "chunking": file.chunking.kind,
                "size": file.chunking.size,
                "overlap": file.chunking.overlap,
                "batch_id": batch_id,
                "at": at,
            }
            unit += [
                _trash_one(named),
                Statement(NEW_NUMBER),
                Statement(INSERT_FILE, named, rows=1),
                Statement(DROP_ATTRIBUTES, named),
            ]
            if batch_id is not None:
                unit.append(Statement(INSERT_BATCH_FILE, named))
            unit += _attributes(owner, store_id, file.file_id, file.attributes)
        return unit

    def _store(self, row: Row) -> VectorStore:
        expires_at = row["expires_at"]
        return vector_store(row, expired=expires_at is not None and expires_at <= self._now())

    async def _run(self, unit: _Unit, *, work: bool = False) -> bool:
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        if work:
            self.on_work()
        return True

    def _now(self) -> int:
        return milliseconds(self._clock())


def _trash_one(named: dict[str, Any]) -> Statement:
    which = "f.file_id = :file_id AND s.id = :id AND s.owner = :owner"
    return Statement(TRASH_FILES.format(whose="s.id", which=which), named)


def _attributes(owner: str, store_id: str, file_id: str, attributes: Attributes) -> _Unit:
    rows = [
        {"owner": owner, "id": store_id, "file_id": file_id, "key": key, "kind": kind, "value": value}
        for key, kind, value in attribute_rows(attributes)
    ]
    return [Statement(INSERT_ATTRIBUTE, rows, many=True)] if rows else []
