"""The part of the file store's SQL that is specific to PostgreSQL.

Lives here: that SQL. Not here: what is alike in all backends (`../files.py`).

What an owner's files take is a row of its own, which is locked before a file is added: uploads at the same time cannot
both fit. Deleting files, in whatever way, takes off by a trigger.

Invariant: `owner_files.bytes` is the sum over the owner's files, each at least `LEAST_ROOM`. Expiry is by the
database's clock, whatever that of the machine is which took the file.
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
