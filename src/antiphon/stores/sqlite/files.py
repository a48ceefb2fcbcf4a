"""The part of the file store's SQL that is specific to SQLite, and support for older data folders.

Lives here: that SQL, and recording the contents of older folders once. Not here: the SQL that all backends share
(`../files.py`, `../blobs/pending.py`).

A row with the key '*' means that the folder was not scanned yet for contents without rows.
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
    # The statement that adds a file also checks the total, so concurrent uploads cannot exceed the limit together.
    insert=(
        f"""
INSERT INTO files (owner, {COLUMNS})
SELECT :owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob
WHERE :limit IS NULL OR :room + ({_USED}) <= :limit
""",
    ),
)


ListBlobs = Callable[[], AsyncIterator[Sequence[str]]]
"""The keys of all contents of a storage, in batches."""

# Keeps contents that a scan recorded and that a process of an older version has turned into a file.
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
    """`PendingRows` that record contents without rows before they reserve any row."""

    taking = (*PendingRows.taking, Statement(SPARE_FILES, {}))

    def __init__(self, tables: Tables, lease: float, list_before: ListBlobs | None = None) -> None:
        """`list_before`: lists contents that may date from before there were rows. Each gets a `lease` in seconds,
        because a process of an older version may be turning it into a file."""
        super().__init__(tables)
        self._lease = milliseconds(lease)
        self._list_before = list_before

    async def take_overdue(self) -> None:
        """Reserve all rows with an expired lease."""
        if self._list_before is not None:
            await self._note(self._list_before)
        await super().take_overdue()

    async def _note(self, listed: ListBlobs) -> None:
        """Record every content without a row, once per database."""
        if not await self.tables.fetch(IS_UNLISTED, {}):
            return
        async for keys in listed():
            await self.tables.run([Statement(NOTE_UNKNOWN, {"keys": list(keys), "lease": self._lease})])
        await self.tables.run([Statement(WAS_LISTED, {})])
