"""Moving everything from a data folder into a database that machines share.

Lives here: the order of the work, and the comparison at its end. Not here: rows (`moved.py`),
contents of files (`moved_contents.py`), the backends' ends of it (`sqlite/leaving.py`, `postgres/arriving.py`), the
command line.

A move can be killed at any moment and started again: it goes on behind the last batch that arrived. It holds one batch.

Invariants: the source is only read, once it has this build's schema; before the first row is moved everything that the
move needs was looked at, and the folder is marked (`moved_mark.py`), so that nobody starts on it; no process starts on
the target before every row and every content was compared.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from antiphon.config.state import BlobSettings
from antiphon.config.state_url import read_state_url
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.blobs.opening import open_blobs
from antiphon.stores.choice import kind_of_backend
from antiphon.stores.moved import COLUMNS, Arriving, Counted, Leaving, Row, Sum
from antiphon.stores.moved_contents import MovedContents
from antiphon.stores.moved_mark import Mark, read_mark, write_mark

_ROWS = 500
_BYTES = 4 << 20
CONTENTS = "contents of files"
"""What is counted beside the kinds of rows."""


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
    target = kind_of_backend(place.kind, "--to").arriving(url, place.shown)
    if target is None:
        raise ConfigError("--to: things are moved to a postgresql:// URL")
    async with AsyncExitStack() as opened:
        arriving = await opened.enter_async_context(aclosing(target))
        contents = None
        if blobs.url is not None:
            # Before anything is touched: whether it can be written to.
            contents = MovedContents(data, await open_blobs(blobs, data))
            opened.push_async_callback(contents.aclose)
        source = kind_of_backend("sqlite").leaving(folder)
        assert source is not None
        leaving = opened.enter_context(closing(source))
        mark = await _begin(folder, leaving, arriving)
        moved = await _move(leaving, arriving, contents, said)
        write_mark(folder, replace(mark, whole=True))
        await arriving.end()
        return moved


async def _begin(folder: Path, leaving: Leaving, arriving: Arriving) -> Mark:
    """Mark the folder, and make the database ready or go on there; the mark."""
    before = read_mark(folder)
    name = before.name if before is not None and before.target == arriving.name else secrets.token_hex(4)
    mark = Mark(name, arriving.name, whole=False)
    write_mark(folder, mark)
    try:
        await arriving.begin(f"{leaving.name} (move {name})", vectors=leaving.has_vectors())
    except StoreError as error:
        if error.reason != "unknown":
            # Nothing of it is there.
            write_mark(folder, before)
        raise
    return mark


async def _move(
    leaving: Leaving, arriving: Arriving, contents: MovedContents | None, said: Callable[[str], None]
) -> list[Moved]:
    kinds = [kind for kind in COLUMNS if kind != "pending_blobs" or contents is None]
    for kind in kinds:
        after, there = await arriving.position(kind)
        said(f"{kind}: {f'goes on behind {there} rows' if there else 'begins'}")
        async for rows, position in _batches(leaving, kind, after):
            await arriving.add(kind, rows, position)
    await arriving.finish(leaving.numbers())
    if contents is not None:
        said("contents of files: begin")
        await contents.move(leaving)
    moved = []
    for kind in kinds:
        said(f"{kind}: compared")
        moved.append(await _compared(leaving, arriving, kind))
    if contents is not None:
        said("contents of files: compared")
        moved.append(Moved(CONTENTS, *await contents.compared(leaving)))
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
