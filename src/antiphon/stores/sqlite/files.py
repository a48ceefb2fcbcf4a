"""Defines the SQL of the file store that is specific to SQLite, and registers blobs of older data folders.

Lives here: the INSERT of a file row, which checks the owner's storage limit, and the one-time scan for blobs without a
row. Not here: the SQL that all backends share (`../files.py`, `../blobs/pending.py`).

A row of `pending_blobs` with the key '*' means that the scan has not run yet. The migration that creates the table
inserts this row.
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
    # The INSERT also checks the owner's total bytes, so concurrent uploads cannot exceed the limit together.
    insert=(
        f"""
INSERT INTO files (owner, {COLUMNS})
SELECT :owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob
WHERE :limit IS NULL OR :room + ({_USED}) <= :limit
""",
    ),
)


ListBlobs = Callable[[], AsyncIterator[Sequence[str]]]
"""Yields the keys of all blobs in a storage, in batches."""

# Deletes reserved rows whose blob belongs to a file, so that the sweep keeps the blob. A process of an older version
# adds a file row, but does not delete the pending row that the scan inserted.
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
    """`PendingRows` that first register every blob without a row, once per database, and then reserve expired rows."""

    taking = (*PendingRows.taking, Statement(SPARE_FILES, {}))

    def __init__(self, tables: Tables, lease: float, list_before: ListBlobs | None = None) -> None:
        """`list_before`: yields the keys of all blobs in the folder, including blobs from versions of Antiphon that had
        no table `pending_blobs`. For each blob that no row mentions, this class inserts a row with a lease into
        `pending_blobs`. The lease lasts `lease` seconds, because a process of an older version may still be uploading
        the blob."""
        super().__init__(tables)
        self._lease = milliseconds(lease)
        self._list_before = list_before

    async def take_overdue(self) -> None:
        """Reserve all pending rows with an expired lease for deletion."""
        if self._list_before is not None:
            await self._note(self._list_before)
        await super().take_overdue()

    async def _note(self, listed: ListBlobs) -> None:
        """Insert a row into `pending_blobs` for every blob that no row mentions. This happens once per database."""
        if not await self.tables.fetch(IS_UNLISTED, {}):
            return
        async for keys in listed():
            await self.tables.run([Statement(NOTE_UNKNOWN, {"keys": list(keys), "lease": self._lease})])
        await self.tables.run([Statement(WAS_LISTED, {})])
