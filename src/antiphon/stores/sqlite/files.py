"""What SQLite says of files in its own way.

Lives here: that SQL. Not here: what is alike in all backends (`../files.py`).
"""

from __future__ import annotations

from antiphon.stores.files import COLUMNS, LEAST_ROOM, FileSql

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
