"""Moves all state from a data folder (SQLite) into a shared PostgreSQL database, for `antiphon admin move`.

Lives here: the order of the steps of a move, the copy of file contents into a bucket, and the comparison of target and
source. Not here: the form of rows (`move_format.py`), reading and writing rows (`sqlite/exporting.py`,
`postgres/importing.py`), storages for contents (`blobs/`), the command line.

An operator can kill a move at any moment and start it again. The move continues after the last batch that the target
stored. The process holds only one batch of rows, or one part of one file's content, in memory.

Invariants: the move only reads the source, after it has upgraded the source to this build's schema. Before the move
copies the first row, it checks the target and the bucket, and marks the folder (`move_format.py`). So no process starts
on the marked folder. No process starts on the target database before the move has compared every row and every file
content. The move reads each file's content back from the bucket and compares its hash with the file's row.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from antiphon.config.state import BlobSettings
from antiphon.config.urls import read_state_url
from antiphon.engine.ports.files import BlobReader, BlobStore
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.backend import Report, ignore_progress
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.choice import export_of, import_into
from antiphon.stores.move_format import COLUMNS, MoveMark, Row, RowChecksum, RowCount, read_mark, write_mark

if TYPE_CHECKING:
    from antiphon.stores.choice import DatabaseImport, FolderExport

_ROWS = 500
_BYTES = 4 << 20
_PART = 1 << 20
_KEY, _SIZE, _SHA256 = (COLUMNS["files"].index(name) for name in ("blob", "size", "sha256"))
CONTENTS = "contents of files"
"""The kind under which `move` reports the count of file contents."""


@dataclass(frozen=True, slots=True)
class MoveComparison:
    """The counts of one kind of row at the source and at the target. `move` raises an error unless both counts are
    equal."""

    kind: str
    source: RowCount
    target: RowCount


async def move(
    folder: Path,
    url: str,
    *,
    data: Path,
    blobs: BlobSettings,
    said: Callable[[str], None] = lambda _: None,
    report: Report = ignore_progress,
    importing: Callable[[str, str], DatabaseImport] = import_into,
    bucket: Callable[[BlobSettings, Path], Awaitable[BlobStore]] = open_blobs,
    rows: int = _ROWS,
) -> list[MoveComparison]:
    """Move all rows of the databases in `folder` to the database at `url`. If `blobs` names a bucket, also move the
    file contents from the data folder `data` to that bucket.

    Returns the number of rows at the source and at the target, for each kind of row. The function calls `said` with
    each progress message, and `report` with the number of copied rows. `rows`: the number of rows per batch. Raises
    `ConfigError` and `StoreError`.
    """
    place = read_state_url(url)
    if place.kind != "postgresql":
        raise ConfigError("--to: the target must be a postgresql:// URL")
    async with AsyncExitStack() as opened:
        target = await opened.enter_async_context(aclosing(importing(url, place.shown)))
        contents = None
        if blobs.url is not None:
            # Checks that the bucket is writable before the move changes anything.
            contents = _Contents(data, await bucket(blobs, data))
            opened.push_async_callback(contents.aclose)
        source = opened.enter_context(closing(export_of(folder)))
        mark = await _begin(folder, source, target)
        moved = await _move(source, target, contents, said, report, rows)
        write_mark(folder, replace(mark, whole=True))
        await target.end()
        return moved


async def _begin(folder: Path, source: FolderExport, target: DatabaseImport) -> MoveMark:
    """Write the mark file into the source folder, and prepare the target database for a new or a continued move.
    Returns the folder's mark."""
    before = read_mark(folder)
    name = before.name if before is not None and before.target == target.name else secrets.token_hex(4)
    mark = MoveMark(name, target.name, whole=False)
    write_mark(folder, mark)
    try:
        await target.begin(f"{source.name} (move {name})", vectors=source.has_vectors())
    except StoreError as error:
        if error.reason != "unknown":
            # The target has not recorded this move, so the folder gets its previous mark back.
            write_mark(folder, before)
        raise
    return mark


async def _move(
    source: FolderExport,
    target: DatabaseImport,
    contents: _Contents | None,
    said: Callable[[str], None],
    report: Report,
    together: int,
) -> list[MoveComparison]:
    kinds = [kind for kind in COLUMNS if kind != "pending_blobs" or contents is None]
    for kind in kinds:
        after, there = await target.position(kind)
        said(f"{kind}: {f'copying continues after {there} rows' if there else 'copying begins'}")
        async for rows, position in _batches(source, kind, after, together):
            await target.add(kind, rows, position)
            report(len(rows), None)
    await target.finish(source.numbers())
    if contents is not None:
        said("contents of files: copying begins")
        await contents.move(source)
    moved = []
    for kind in kinds:
        said(f"{kind}: comparing")
        moved.append(await _compared(source, target, kind))
    if contents is not None:
        said("contents of files: comparing")
        moved.append(MoveComparison(CONTENTS, *await contents.compared(source)))
    return moved


async def _batches(source: FolderExport, kind: str, after: int, together: int) -> AsyncIterator[tuple[list[Row], int]]:
    """Yield batches of rows after the position `after`, each with the position of its last row. All rows with the same
    position are in the same batch."""
    rows: list[Row] = []
    size, last = 0, after
    for position, row in source.rows(kind, after):
        if position != last and (len(rows) >= together or size >= _BYTES):
            yield rows, last
            rows, size = [], 0
        rows.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        last = position
    if rows:
        yield rows, last


async def _compared(source: FolderExport, target: DatabaseImport, kind: str) -> MoveComparison:
    here, there = RowChecksum(), RowChecksum()
    width = len(COLUMNS[kind])
    for _, row in source.rows(kind, 0):
        here.add(_comparable(kind, row[:width]))
    async for row in target.rows(kind):
        there.add(_comparable(kind, row))
    moved = MoveComparison(kind, here.counted, there.counted)
    if moved.source != moved.target:
        raise StoreError(
            f"{kind}: the {moved.source.rows} rows in the data folder and the {moved.target.rows} rows in "
            f"{target.name} differ, because a process used the data folder during the move. Empty {target.name} and "
            "start the move again."
        )
    return moved


def _comparable(kind: str, row: Row) -> Row:
    """Convert a row to a form that is equal for SQLite and PostgreSQL: numbers by value, lists as parsed JSON, texts as
    bytes."""
    if kind == "jobs":
        return (*row[:3], json.loads(row[3]), *row[4:])
    if kind == "file_attributes":
        return (*row[:5], None if row[5] is None else str(Decimal(str(row[5])).normalize()))
    return tuple(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in row)


class _Contents:
    """Copies file contents from a data folder into a bucket. `aclose` closes the folder and the bucket."""

    def __init__(self, data: Path, bucket: BlobStore) -> None:
        self._folder = data / FILES_FOLDER
        self._source = DiskBlobs(self._folder)
        self._bucket = bucket

    async def move(self, source: FolderExport) -> None:
        """Copy every file content that the bucket lacks. Raises `StoreError` when a copied content does not match its
        file's row."""
        for key, size, sha256 in _contents(source):
            if await self._size(key) == size:
                continue
            # An interrupted move may have left an incomplete content under this key.
            await self._bucket.delete(key)
            content = await self._source.open(key)
            try:
                async with self._bucket.writing(key) as writer:
                    at = 0
                    while part := await content.read(at, _PART):
                        await writer.write(part)
                        at += len(part)
                    sealed = await writer.seal()
            finally:
                await content.aclose()
            if (sealed.size, sealed.sha256) != (size, sha256):
                raise StoreError(
                    f"The content {key} in {self._folder} is damaged: its size or hash differs from the file's row in "
                    "the database. Restore the content from a backup, then run the move again."
                )

    async def compared(self, source: FolderExport) -> tuple[RowCount, RowCount]:
        """Read every content back from the bucket. Returns the counts from the files' rows and from the bucket. Raises
        `StoreError` at the first difference."""
        here, there, total = RowChecksum(), RowChecksum(), 0
        for key, size, sha256 in _contents(source):
            content = await self._bucket.open(key)
            try:
                found = (content.size, await _hash(content))
            finally:
                await content.aclose()
            if found != (size, sha256):
                await self._bucket.delete(key)
                raise StoreError(
                    f"The content {key} in the bucket differs from the content in the data folder. Run the move again."
                )
            here.add((key, size, sha256))
            there.add((key, *found))
            total += size
        return replace(here.counted, content_bytes=total), replace(there.counted, content_bytes=total)

    async def aclose(self) -> None:
        """Close the bucket and the data folder."""
        await self._bucket.aclose()
        await self._source.aclose()

    async def _size(self, key: str) -> int | None:
        try:
            content = await self._bucket.open(key)
        except StoreError:
            return None
        await content.aclose()
        return content.size


def _contents(source: FolderExport) -> Iterator[tuple[str, int, str]]:
    """Yield the key, the size and the SHA-256 of each file's content."""
    for _, row in source.rows("files", 0):
        yield row[_KEY], row[_SIZE], row[_SHA256]


async def _hash(content: BlobReader) -> str:
    found, at = hashlib.sha256(), 0
    while part := await content.read(at, _PART):
        found.update(part)
        at += len(part)
    return found.hexdigest()
