"""Contains the SQL of the file store that is specific to PostgreSQL.

Lives here: the SQL for expiry and for the limit of an owner's bytes. Not here: the SQL that all backends share
(`../files.py`).

The table `owner_files` has one row per owner with the bytes of the owner's files. The insert of a file updates the
owner's row first, so concurrent uploads cannot exceed the limit together. A trigger subtracts the bytes of a deleted
file.

Invariant: `owner_files.bytes` is the sum over the owner's files, each counted with at least `LEAST_ROOM` bytes. A file
expires by the database's clock, even if the clock of the uploading machine was wrong.
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
