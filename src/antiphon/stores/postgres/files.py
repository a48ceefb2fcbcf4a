"""The part of the file store's SQL that is specific to PostgreSQL.

Lives here: that SQL. Not here: the SQL that all backends share (`../files.py`).

A separate row holds the bytes of an owner's files. Adding a file locks it first, so concurrent uploads cannot exceed
the limit together. A trigger subtracts the bytes of a deleted file.

Invariant: `owner_files.bytes` is the sum over the owner's files, each at least `LEAST_ROOM`. The database's clock
decides about expiry, whatever the clock of the uploading machine was.
"""

from __future__ import annotations

from antiphon.stores.files import COLUMNS, FileSql

SQL = FileSql(
    ends="coalesce(gone_at, expires_at)",
    used="SELECT bytes FROM owner_files WHERE owner = :owner",
    insert=(
        """
INSERT INTO owner_files AS o (owner, bytes)
SELECT :owner, :room WHERE CAST(:limit AS bigint) IS NULL OR :room <= :limit
ON CONFLICT (owner) DO UPDATE SET bytes = o.bytes + excluded.bytes
  WHERE CAST(:limit AS bigint) IS NULL OR o.bytes + excluded.bytes <= :limit
""",
        f"""
INSERT INTO files (owner, {COLUMNS}, gone_at)
VALUES (:owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob,
        now_ms() + CAST(:left AS bigint))
""",
    ),
)
