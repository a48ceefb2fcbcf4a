"""What an operator does with one owner's vector stores.

Lives here: counting them, reading what an export holds of them, deleting them. Not here: the command line
(`commands/admin.py`), everything that is not in `vectors.db`.

An export has the stores and which files are in them, with their attributes; the chunks are the files' own text once
more, and files are exported as such.

Invariant: a folder without vector stores gets none by being looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from antiphon.stores.knowledge import VECTORS_FILE, KnowledgeStores, open_knowledge

__all__ = ["count_stores", "delete_stores", "export_stores", "opened_knowledge", "sweep_stores"]

COUNT = "SELECT owner, count(*) FROM vector_stores GROUP BY owner"
STORES = """
SELECT id, created_at, name, description, metadata, expires_days FROM vector_stores WHERE owner = :owner ORDER BY no
"""
FILES = """
SELECT f.file_id, s.id, f.filename, f.status, f.attributes
FROM vector_stores s JOIN vector_files f ON f.store_no = s.no WHERE s.owner = :owner ORDER BY s.no, f.created_at
"""
STORE_IDS = "SELECT id FROM vector_stores WHERE owner = :owner"

Row = tuple[str, Any, Any, dict[str, Any]]


async def count_stores(data: Path) -> dict[str, int]:
    """How many stores each owner has. Raises `StoreError`."""
    async with opened_knowledge(data) as knowledge:
        return {} if knowledge is None else dict(await knowledge.readers.fetch(COUNT, {}))


async def export_stores(data: Path, owner: str) -> list[Row]:
    """Kind, id, what it belongs to, and the fields of everything. Raises `StoreError`."""
    async with opened_knowledge(data) as knowledge:
        if knowledge is None:
            return []
        named = {"owner": owner}
        stores = await knowledge.readers.fetch(STORES, named)
        files = await knowledge.readers.fetch(FILES, named)
    rows: list[Row] = [
        (
            "vector_stores",
            row[0],
            row[1],
            {"name": row[2], "description": row[3], "metadata": json.loads(row[4]), "expires_days": row[5]},
        )
        for row in stores
    ]
    rows += [
        (
            "vector_store_files",
            row[0],
            row[1],
            {"filename": row[2], "status": row[3], "attributes": json.loads(row[4])},
        )
        for row in files
    ]
    return rows


async def delete_stores(data: Path, owner: str) -> None:
    """Delete the owner's stores with all that was made of their files. Raises `StoreError`."""
    async with opened_knowledge(data) as knowledge:
        if knowledge is not None:
            for (store_id,) in await knowledge.readers.fetch(STORE_IDS, {"owner": owner}):
                await knowledge.stores.delete(owner, store_id)
            await sweep_stores(knowledge)


async def sweep_stores(knowledge: KnowledgeStores) -> None:
    """Clear away what expired or was removed. Raises `StoreError`."""
    while await knowledge.ingestion.sweep(time.time()):
        pass


@asynccontextmanager
async def opened_knowledge(data: Path) -> AsyncIterator[KnowledgeStores | None]:
    """The folder's vector stores, or None when it has none."""
    if not (data / VECTORS_FILE).exists():
        yield None
        return
    knowledge = await open_knowledge(data)
    try:
        yield knowledge
    finally:
        await knowledge.aclose()
