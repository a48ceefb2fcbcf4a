"""The part of the file store's SQL that is specific to SQLite, and support for older data folders.

Lives here: that SQL, and noting such contents once. Not here: what is alike in all backends (`../files.py`,
`../blobs/pending.py`).

The row of the key '*' stands for what lies in the folder and was not looked through yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from antiphon.stores.blobs.pending import PendingRows
from antiphon.stores.files import COLUMNS, LEAST_ROOM, FileSql
from antiphon.stores.tables import Statement, Tables, milliseconds

_USED = f"SELECT coalesce(sum(greatest(size, {LEAST_ROOM})), 0) FROM files WHERE owner = :owner"

SQL = FileSql(
    ends="expires_at",
    used=_USED,
    # The total is looked at by the statement that adds to it, so that uploads at the same time cannot both fit.
    insert=(
        f"""
INSERT INTO files (owner, {COLUMNS})
SELECT :owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob
WHERE :limit IS NULL OR :room + ({_USED}) <= :limit
""",
    ),
)


ListBlobs = Callable[[], AsyncIterator[Sequence[str]]]
"""All contents of a storage by key, some at a time."""

# What was noted by a look through the folder, and became the file of a process that notes nothing itself.
SPARE_FILES = """
DELETE FROM pending_blobs WHERE lease_until = taken() AND EXISTS (
  SELECT 1 FROM files WHERE files.blob = pending_blobs.key
)
"""
IS_UNLISTED = "SELECT 1 FROM pending_blobs WHERE key = '*'"
NOTE_UNKNOWN = """
INSERT INTO pending_blobs (key, lease_until)
SELECT value, lease_in(:lease) FROM json_each(:keys)
WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.blob = value)
ON CONFLICT DO NOTHING
"""
WAS_LISTED = "DELETE FROM pending_blobs WHERE key = '*'"


class SqlitePendingRows(PendingRows):
    """`PendingRows` that note contents without rows before they take anything."""

    taking = (*PendingRows.taking, Statement(SPARE_FILES, {}))

    def __init__(self, tables: Tables, lease: float, list_before: ListBlobs | None = None) -> None:
        """`list_before`: lists where contents from before there were rows may lie; each has a `lease` in seconds to
        become a file, since a process of an older version may be at it."""
        super().__init__(tables)
        self._lease = milliseconds(lease)
        self._list_before = list_before

    async def take_overdue(self) -> None:
        """Take all rows whose lease is over."""
        if self._list_before is not None:
            await self._note(self._list_before)
        await super().take_overdue()

    async def _note(self, listed: ListBlobs) -> None:
        """Note, once for a database, every content that no row names."""
        if not await self.tables.fetch(IS_UNLISTED, {}):
            return
        async for keys in listed():
            await self.tables.run([Statement(NOTE_UNKNOWN, {"keys": list(keys), "lease": self._lease})])
        await self.tables.run([Statement(WAS_LISTED, {})])
