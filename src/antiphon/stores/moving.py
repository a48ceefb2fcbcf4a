"""Moving everything from a data folder into a database that machines share.

Lives here: the order of the work, and the comparison at its end. Not here: rows (`moved.py`), the backends' ends of it
(`sqlite/leaving.py`, `postgres/arriving.py`), the command line.

A move can be killed at any moment and started again: it goes on behind the last batch that arrived. It holds one batch.

Invariants: the source is only read, once it has this build's schema; no process starts on the target before every row
was compared.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from antiphon.config.state import BlobSettings
from antiphon.config.state_url import read_state_url
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.blobs.opening import open_blobs
from antiphon.stores.moved import COLUMNS, Arriving, Counted, Leaving, Row, Sum

_ROWS = 500
_BYTES = 4 << 20
_PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Moved:
    """How much of a kind there is on both sides."""

    kind: str
    source: Counted
    target: Counted


async def move(
    folder: Path, url: str, *, data: Path, blobs: BlobSettings, said: Callable[[str], None] = lambda _: None
) -> list[Moved]:
    """Move everything of the databases in `folder`, and the contents of files from the data folder to the bucket of
    `blobs`, where there is one; what was moved, kind by kind, equal on both sides. `said` is told what is under way.

    Raises `ConfigError` and `StoreError`.
    """
    place = read_state_url(url)
    if place.kind != "postgresql":
        raise ConfigError("--to: things are moved to a postgresql:// URL")
    try:
        from antiphon.stores.postgres.arriving import ArrivingDatabase
    except ImportError:
        raise ConfigError("--to: PostgreSQL needs asyncpg; install the extra 'postgres'") from None
    from antiphon.stores.sqlite.leaving import LeavingFolder

    leaving = LeavingFolder(folder)
    try:
        arriving = ArrivingDatabase(url, place.shown)
        try:
            return await _move(leaving, arriving, data, blobs, said)
        finally:
            await arriving.aclose()
    finally:
        leaving.close()


async def _move(
    leaving: Leaving, arriving: Arriving, data: Path, blobs: BlobSettings, said: Callable[[str], None]
) -> list[Moved]:
    await arriving.begin(leaving.name, vectors=leaving.has_vectors())
    kinds = [kind for kind in COLUMNS if kind != "pending_blobs" or blobs.url is None]
    for kind in kinds:
        after, there = await arriving.position(kind)
        said(f"{kind}: {f'goes on behind {there} rows' if there else 'begins'}")
        async for rows, position in _batches(leaving, kind, after):
            await arriving.add(kind, rows, position)
    await arriving.finish(leaving.numbers())
    if blobs.url is not None:
        said("contents of files")
        await _move_contents(leaving, data, blobs)
    moved = []
    for kind in kinds:
        said(f"{kind}: compared")
        moved.append(await _compared(leaving, arriving, kind))
    await arriving.end()
    return moved


async def _batches(leaving: Leaving, kind: str, after: int) -> AsyncIterator[tuple[list[Row], int]]:
    """Rows and the position behind them; a batch never ends between two of one position."""
    rows: list[Row] = []
    size, last = 0, after
    for position, row in leaving.rows(kind, after):
        if position != last and (len(rows) >= _ROWS or size >= _BYTES):
            yield rows, last
            rows, size = [], 0
        rows.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        last = position
    if rows:
        yield rows, last


async def _compared(leaving: Leaving, arriving: Arriving, kind: str) -> Moved:
    source, target = Sum(), Sum()
    width = len(COLUMNS[kind])
    for _, row in leaving.rows(kind, 0):
        source.add(_comparable(kind, row[:width]))
    async for row in arriving.rows(kind):
        target.add(_comparable(kind, row))
    moved = Moved(kind, source.counted, target.counted)
    if moved.source != moved.target:
        raise StoreError(
            f"{kind}: {moved.source.rows} rows here, {moved.target.rows} there, and not the same: the data folder was "
            f"used between two parts of the move. Empty {arriving.name} and begin again."
        )
    return moved


def _comparable(kind: str, row: Row) -> Row:
    """What both sides write in one way: numbers by their value, lists in JSON."""
    if kind == "jobs":
        return (*row[:3], json.loads(row[3]), *row[4:])
    if kind == "file_attributes":
        return (*row[:5], None if row[5] is None else str(Decimal(str(row[5])).normalize()))
    return tuple(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in row)


async def _move_contents(leaving: Leaving, data: Path, blobs: BlobSettings) -> None:
    """Copy every file's content that is not in the bucket yet."""
    source = DiskBlobs(data / FILES_FOLDER)
    target = await open_blobs(blobs, data / FILES_FOLDER)
    columns = COLUMNS["files"]
    key_at, size_at, sha_at = (columns.index(name) for name in ("blob", "size", "sha256"))
    try:
        for _, row in leaving.rows("files", 0):
            key, size, sha256 = row[key_at], row[size_at], row[sha_at]
            try:
                there = await target.open(key)
            except StoreError:
                there = None
            if there is not None:
                arrived = there.size == size
                await there.aclose()
                if arrived:
                    continue
            # Of one that was broken off.
            await target.delete(key)
            content = await source.open(key)
            try:
                async with target.writing(key) as writer:
                    at = 0
                    while part := await content.read(at, _PART):
                        await writer.write(part)
                        at += len(part)
                    sealed = await writer.seal()
            finally:
                await content.aclose()
            if (sealed.size, sealed.sha256) != (size, sha256):
                raise StoreError(f"The content {key} in {data / FILES_FOLDER} is not what its file's row says.")
    finally:
        await target.aclose()
        await source.aclose()
