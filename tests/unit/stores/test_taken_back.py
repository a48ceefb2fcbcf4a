"""What is told to have failed and is committed all the same is taken back: each store's own `undo`, run at once.

When it is run is in `test_late_commits.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.sqlite.backend import (
    SESSIONS_FILE,
    VECTOR_STEPS,
    VECTORS_FILE,
    SqliteStores,
    open_vector_database,
    prepare,
)
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.units import Step, Undo
from antiphon.stores.sqlite.vectors.sql import SqliteVectorSql
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Counts
from antiphon.stores.vector_stores import VectorStores
from tests.contracts.conversation_contract import in_conversation
from tests.contracts.job_contract import MOST, piece, queued
from tests.contracts.store_contract import ALICE, BOB, item, record
from tests.support.sqlite_files import open_over, prepare_sessions

ONCE = OnceOnly(ALICE, "k", "f")
OTHER = OnceOnly(ALICE, "other", "f")


def _rows(path: Path) -> set[tuple[Any, ...]]:
    """Everything in a database, but for counters, dates of change and what search keeps."""
    found: set[tuple[Any, ...]] = set()
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            if table.startswith(("sqlite_", "fts_", "file_numbers", "owner_bytes")):
                continue
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            kept = [name for name in names if name not in ("next_pos", "updated_at", "version", "expires_at")]
            found |= {(table, *row) for row in connection.execute(f"SELECT {', '.join(kept)} FROM {table}")}
    connection.close()
    return found


class UndoingWriter(SqliteWriter):
    """A writer that undoes every unit immediately after its commit. `took` lists the statements of each undo."""

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
        super().__init__(path, prepare)
        self.took: list[int] = []

    async def run(self, steps: Sequence[Step], *, undo: Undo = ()) -> Counts:
        counts = await super().run(steps, undo=undo)
        back = undo() if callable(undo) else undo
        self.took.append(len(back))
        await super().run(back)
        return counts


@pytest.fixture
async def undoing(tmp_path: Path) -> AsyncIterator[tuple[SqliteStores, list[int]]]:
    """More stores in the same folder, whose writer undoes every unit."""
    path = tmp_path / SESSIONS_FILE
    writer = UndoingWriter(path, prepare_sessions)
    async with aclosing(await open_over(tmp_path, writer, SqliteReaders(path), chain_items=100)) as opened:
        yield opened, writer.took


async def _before(stores: SqliteStores) -> None:
    """Things that have nothing to do with what is taken back, and what it joins."""
    await stores.responses.save(record("there"))
    await stores.responses.save(record("b", owner=BOB))
    for owner in (ALICE, BOB):
        await stores.conversations.create(owner, "conv_there", b"{}", [item("msg_there")])
    await stores.conversations.load(ALICE, "conv_there", holder="resp_c", seconds=60)
    await stores.conversations.create(ALICE, "conv_free", b"{}", [item("msg_free")])
    await stores.prompts.create(ALICE, "pmpt_there", None, b"{}", b"{}")
    assert isinstance(stores.keys, IdempotencyStore)
    await stores.keys.make(OTHER, "conv_there", [], [])
    await stores.files.sweep()


async def _upload(stores: SqliteStores) -> None:
    async with stores.files.uploading() as upload:
        await upload.write(b"x")
        await upload.keep(ALICE, FileFields("file-a", "a", "p", "t", 1.0, None), ONCE)


_Make = Callable[[SqliteStores], Awaitable[Any]]
MAKE: dict[str, _Make] = {
    "response": lambda stores: stores.responses.save(record("a")),
    "continued": lambda stores: stores.responses.save(record("a", prev="there")),
    "in a conversation": lambda stores: stores.responses.save(in_conversation("c", "conv_there")),
    "queued": lambda stores: stores.background.enqueue(queued("a"), b"{}", piece(0, 1), limit=MOST),
    "queued behind": lambda stores: stores.background.enqueue(queued("a", prev="there"), b"{}", None, limit=MOST),
    "conversation": lambda stores: stores.conversations.create(ALICE, "conv_a", b"{}", [item("msg_a")], ONCE),
    "items": lambda stores: stores.conversations.add_items(ALICE, "conv_free", [item("msg_a"), item("msg_b")]),
    "prompt": lambda stores: stores.prompts.create(ALICE, "pmpt_a", None, b"{}", b"{}", ONCE),
    "file": _upload,
    "key": lambda stores: stores.keys.claim(ONCE, "resp_a", 60.0),
}


@pytest.mark.parametrize("name", MAKE)
async def test_what_is_taken_back_leaves_nothing(
    stores: SqliteStores, undoing: tuple[SqliteStores, list[int]], tmp_path: Path, name: str
) -> None:
    await _before(stores)
    before = _rows(tmp_path / SESSIONS_FILE)
    others, took = undoing
    await MAKE[name](others)
    after = _rows(tmp_path / SESSIONS_FILE)
    if name == "file":
        # An upload that has only begun runs out by itself, and the content of one that is no file is for the sweep.
        assert took.pop(0) == 0
        await stores.files.sweep()
        took, after = took[:1], _rows(tmp_path / SESSIONS_FILE)
    assert took and all(took)
    if name == "in a conversation":
        # Its lock was given back with the response, and is nobody's now.
        before, after = ({row for row in rows if row[0] != "conversations"} for rows in (before, after))
    assert after == before


async def test_a_response_with_a_key_gives_the_key_back(
    stores: SqliteStores, undoing: tuple[SqliteStores, list[int]], tmp_path: Path
) -> None:
    await _before(stores)
    before = _rows(tmp_path / SESSIONS_FILE)
    saves: tuple[_Make, ...] = (
        lambda stores: stores.responses.save(replace(record("a"), once=ONCE)),
        lambda stores: stores.background.enqueue(replace(queued("a"), once=ONCE), b"{}", None, limit=MOST),
    )
    for save in saves:
        assert await stores.keys.claim(ONCE, "resp_a", 60.0) is None
        await save(undoing[0])
        assert _rows(tmp_path / SESSIONS_FILE) == before


async def test_a_vector_store_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / VECTORS_FILE
    async with aclosing(await open_vector_database(tmp_path)) as database:
        await database.stores.create(
            ALICE, "vs_there", name=None, description=None, metadata=b"{}", expires_days=None, files=[NewFile("f", "a")]
        )
        before = _rows(tmp_path / VECTORS_FILE)
        writer = UndoingWriter(path, lambda connection: prepare(connection, VECTOR_STEPS, ()))
        await writer.start()
        tables = SqliteTables(writer, database.tables.readers)
        undoing = VectorStores(tables, IdempotencyStore(tables), SqliteVectorSql())
        with pytest.raises(Exception, match="deleted while it was made"):
            await undoing.create(
                ALICE, "vs_a", name=None, description=None, metadata=b"{}", expires_days=None, once=ONCE
            )
        await writer.aclose()
        assert _rows(tmp_path / VECTORS_FILE) == before
        rows = await database.tables.readers.fetch("SELECT count(*) FROM sqlite_schema WHERE name = 'fts_vs_a'", {})
        assert rows[0][0] == 0
