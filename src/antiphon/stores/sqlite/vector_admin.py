"""What an operator does with one owner's vector stores.

Lives here: counting them, reading what an export holds of them, deleting them. Not here: the port (`owner_data.py`),
everything that is not in `vectors.db`.

An export has the stores and which files are in them, with their attributes; the chunks are the files' own text once
more, and files are exported as such.

Invariant: a folder without vector stores gets none by being looked at.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from antiphon.stores.sqlite.vector_database import VECTORS_FILE, SqliteVectorDatabase, open_vector_database
from antiphon.stores.tables import Statement

COUNT = "SELECT owner, count(*) FROM vector_stores GROUP BY owner"
STORES = """
SELECT id, created_at, name, description, metadata, expires_days FROM vector_stores WHERE owner = :owner ORDER BY no
"""
FILES = """
SELECT f.file_id, s.id, f.filename, f.status, f.attributes
FROM vector_stores s JOIN vector_files f ON f.store_no = s.no WHERE s.owner = :owner ORDER BY s.no, f.created_at
"""
FORGET_KEYS = "DELETE FROM idempotency WHERE owner = :owner"
STORE_IDS = "SELECT id FROM vector_stores WHERE owner = :owner"

Row = tuple[str, Any, Any, dict[str, Any]]


async def count_stores(data: Path) -> dict[str, int]:
    """How many stores each owner has. Raises `StoreError`."""
    async with _opened(data) as database:
        return {} if database is None else dict(map(tuple, await database.tables.readers.fetch(COUNT, {})))


async def export_stores(data: Path, owner: str) -> list[Row]:
    """Kind, id, what it belongs to, and the fields of everything. Raises `StoreError`."""
    async with _opened(data) as database:
        if database is None:
            return []
        named = {"owner": owner}
        stores = await database.tables.readers.fetch(STORES, named)
        files = await database.tables.readers.fetch(FILES, named)
    rows: list[Row] = [
        (
            "vector_stores",
            store_id,
            created_at,
            {"name": name, "description": description, "metadata": json.loads(metadata), "expires_days": days},
        )
        for store_id, created_at, name, description, metadata, days in stores
    ]
    rows += [
        (
            "vector_store_files",
            file_id,
            store_id,
            {"filename": filename, "status": status, "attributes": json.loads(attributes)},
        )
        for file_id, store_id, filename, status, attributes in files
    ]
    return rows


async def delete_stores(data: Path, owner: str) -> int:
    """Delete the owner's stores with all that was made of their files; how many stores and keys went. Raises
    `StoreError`."""
    async with _opened(data) as database:
        if database is None:
            return 0
        gone = 0
        for (store_id,) in await database.tables.readers.fetch(STORE_IDS, {"owner": owner}):
            gone += await database.stores.delete(owner, store_id)
        gone += sum(await database.tables.writer.run([Statement(FORGET_KEYS, {"owner": owner})]))
        while await database.ingestion.sweep():
            pass
        return gone


@asynccontextmanager
async def _opened(data: Path) -> AsyncIterator[SqliteVectorDatabase | None]:
    """The folder's vector stores, or None when it has none."""
    if not (data / VECTORS_FILE).exists():
        yield None
        return
    async with aclosing(await open_vector_database(data)) as database:
        yield database
