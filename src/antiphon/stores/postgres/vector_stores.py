"""What it means to keep vector stores: the `VectorStores` port over PostgreSQL.

Lives here: stores, files and batches. Not here: their SQL (`vector_store_sql.py`), chunks and ingestion
(`ingestion.py`), searching (`chunk_index.py`), filters as SQL (`vector_filters.py`).

Whatever adds or takes files holds the store's row first, so two of them never wait for each other, and a store that is
deleted gets no more files. A deleted store has no owner from then on, so nothing finds it; `Ingestion.sweep` clears its
files and the row away in pieces, as it does with what expired.

Invariant: counts and states are never kept beside what they count; they are read from the files' rows.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

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
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.pages import check_cursors
from antiphon.stores.postgres import vector_store_sql as sql
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database, Record
from antiphon.stores.postgres.making import make
from antiphon.stores.postgres.vector_filters import attribute_columns, columns
from antiphon.stores.vector_rows import attributes_json, batch, vector_file, vector_store
from antiphon.types.search import Attributes

_ACTIVE_SECONDS = 60
_TOUCHED = 10_000


class _Missing(Exception):
    """There is no such thing: nothing of the transaction is to be."""


class PostgresVectorStores:
    """`VectorStores` on a database that is somebody else's to close. `on_work` is called when there are files to
    ingest, or something to clear up."""

    def __init__(self, database: Database, *, keys: IdempotencyKeys) -> None:
        self._database = database
        self._keys = keys
        self._touched: dict[tuple[str, str], float] = {}
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
        once: OnceOnly | None = None,
    ) -> VectorStore:
        """Make a store; see `VectorStores.create`."""

        async def work(connection: Connection) -> None:
            given = (owner, store_id, name, description, metadata, expires_days)
            ((number,),) = await connection.fetch(sql.INSERT_STORE, *given)
            await _add(connection, number, files, None)

        await make(self._database, self._keys, once, store_id, work)
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
        rows = await self._database.fetch(sql.GET_STORE, owner, store_id)
        return _store(rows[0]) if rows else None

    async def list(self, owner: str, page: PageQuery) -> StorePage:
        """A page of the owner's stores, by their time of creation."""
        await check_cursors(page, partial(self.get, owner), "There is no vector store with this id")
        text = sql.STORES_BACKWARD if page.backward else sql.STORES_FORWARD
        rows = await self._database.fetch(text, owner, *page.bounds, page.limit + 1)
        return StorePage(page.shown([_store(row) for row in rows]), has_more=len(rows) > page.limit)

    async def update(self, owner: str, store_id: str, changes: StoreChanges) -> VectorStore | None:
        """Change the store; see `VectorStores.update`."""
        given = (changes.name is not None, changes.name, changes.metadata, changes.expires_days, changes.clear_expiry)
        if not await self._database.write(sql.UPDATE_STORE, owner, store_id, *given, again=True):
            return None
        return await self.get(owner, store_id)

    async def delete(self, owner: str, store_id: str) -> bool:
        """Delete the store with everything in it; False when there is none."""

        async def work(connection: Connection) -> bool:
            return bool(await connection.fetch(sql.DELETE_STORE, owner, store_id))

        deleted = await certainly(self._database, work)
        if deleted:
            self.on_work()
        return deleted

    async def touch(self, owner: str, store_ids: Sequence[str]) -> None:
        """Note that the stores were used now (to a minute)."""
        at = time.monotonic()
        due = [one for one in store_ids if at - self._touched.get((owner, one), -_ACTIVE_SECONDS) >= _ACTIVE_SECONDS]
        if due:
            if len(self._touched) > _TOUCHED:
                self._touched.clear()
            self._touched.update(((owner, one), at) for one in due)
            await self._database.write(sql.TOUCH, owner, due, _ACTIVE_SECONDS * 1000, again=True)

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

        async def work(connection: Connection) -> None:
            held = await connection.fetch(sql.HOLD_STORE, owner, store_id)
            if not held:
                raise _Missing
            await _add(connection, held[0][0], files, batch_id)

        try:
            await make(self._database, self._keys, once, batch_id or files[0].file_id, work)
        except _Missing:
            return False
        self.on_work()
        return True

    async def get_file(self, owner: str, store_id: str, file_id: str) -> VectorFile | None:
        """The file in the store, or None."""
        rows = await self._database.fetch(sql.GET_FILE, owner, store_id, file_id)
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
        text = sql.FILES_BACKWARD if page.backward else sql.FILES_FORWARD
        rows = await self._database.fetch(text, owner, store_id, *page.bounds, page.limit + 1, state, batch_id)
        return FilePage(page.shown([vector_file(row) for row in rows]), has_more=len(rows) > page.limit)

    async def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Attributes) -> bool:
        """Replace a file's attributes; False when there is none."""

        async def work(connection: Connection) -> None:
            number = await _held(connection, sql.LOCK_STORE, owner, store_id)
            if not await connection.fetch(sql.SET_ATTRIBUTES, number, file_id, attributes_json(attributes)):
                raise _Missing
            await _set_attributes(connection, number, {file_id: attributes})

        return await self._found(work)

    async def remove_file(self, owner: str, store_id: str, file_id: str) -> bool:
        """Take a file out of the store; False when there is none."""

        async def work(connection: Connection) -> None:
            number = await _held(connection, sql.BUMP, owner, store_id)
            if not await connection.fetch(sql.DELETE_FILE, number, file_id):
                raise _Missing

        return await self._found(work, clear_up=True)

    async def forget_file(self, owner: str, file_id: str) -> None:
        """Take a file out of all the owner's stores: it was deleted."""

        async def work(connection: Connection) -> None:
            numbers = [row[0] for row in await connection.fetch(sql.LOCK_STORES_OF_FILE, owner, file_id)]
            if not numbers:
                raise _Missing
            await connection.execute(sql.BUMP_NUMBERS, numbers)
            await connection.execute(sql.DELETE_EVERYWHERE, numbers, file_id)

        await self._found(work, clear_up=True)

    async def get_batch(self, owner: str, store_id: str, batch_id: str) -> Batch | None:
        """The batch, or None."""
        rows = await self._database.fetch(sql.GET_BATCH, owner, store_id, batch_id)
        return batch(rows[0]) if rows else None

    async def cancel_batch(self, owner: str, store_id: str, batch_id: str) -> bool:
        """Cancel what of the batch is still in progress; False when there is none."""

        async def work(connection: Connection) -> None:
            number = await _held(connection, sql.LOCK_STORE, owner, store_id)
            if not await connection.fetch(sql.CANCEL_BATCH, number, batch_id):
                raise _Missing
            await connection.execute(sql.CANCEL_FILES, number, batch_id)

        return await self._found(work, clear_up=True)

    async def file_text(
        self, owner: str, store_id: str, file_id: str, first: int, limit: int
    ) -> tuple[str, ...] | None:
        """The text of some of the file's chunks; see `VectorStores.file_text`."""
        rows = await self._database.fetch(sql.FILE_TEXT, owner, store_id, file_id, first, limit)
        return tuple([row[0] for row in rows if row[0] is not None]) if rows else None

    async def _found(self, work: Callable[[Connection], Awaitable[None]], *, clear_up: bool = False) -> bool:
        """Do the work in a transaction; False where it found nothing to do it to."""
        try:
            await certainly(self._database, work)
        except _Missing:
            return False
        if clear_up:
            self.on_work()
        return True


async def _held(connection: Connection, statement: str, owner: str, store_id: str) -> int:
    """The number of the store, whose row is held from now on."""
    rows = await connection.fetch(statement, owner, store_id)
    if not rows:
        raise _Missing
    return int(rows[0][0])


async def _add(connection: Connection, number: int, files: Sequence[NewFile], batch_id: str | None) -> None:
    """Files for a store whose row is held. Of a file that is named twice the last is meant."""
    files = list({file.file_id: file for file in files}.values())
    if batch_id is not None:
        await connection.execute(sql.INSERT_BATCH, number, batch_id)
    if not files:
        return
    rows = [
        (
            file.file_id,
            file.filename,
            attributes_json(file.attributes),
            file.chunking.kind,
            file.chunking.size,
            file.chunking.overlap,
        )
        for file in files
    ]
    await connection.execute(sql.INSERT_FILES, number, *columns(rows, 6))
    await _set_attributes(connection, number, {file.file_id: file.attributes for file in files})
    if batch_id is not None:
        await connection.execute(sql.INSERT_BATCH_FILES, number, batch_id, [file.file_id for file in files])


async def _set_attributes(connection: Connection, number: int, by_file: dict[str, Attributes]) -> None:
    await connection.execute(sql.DROP_ATTRIBUTES, number, list(by_file))
    rows = [(file_id, *row) for file_id, attributes in by_file.items() for row in attribute_columns(attributes)]
    if rows:
        await connection.execute(sql.INSERT_ATTRIBUTES, number, *columns(rows, 5))


def _store(row: Record) -> VectorStore:
    return vector_store(row, expired=row["expired"])
