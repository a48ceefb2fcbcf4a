"""What an operator does with `sessions.db`, while it is in use or not.

Lives here: reading everything that belongs to an owner, deleting it, and giving unused space back. Not here: the port
(`owner_data.py`), files' contents and vector stores (their own stores).

Invariant: everything that has an owner is in `OWNED`; a test compares it with the schema.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from antiphon.engine.ports.owner_data import OwnerCounts
from antiphon.stores.sqlite.database import connect_writer, reader_uri, store_errors, wait_for_lock
from antiphon.stores.sqlite.opening import SESSIONS_FILE
from antiphon.stores.sqlite.vector_database import VECTORS_FILE

_AT_ONCE = 100

# A row's JSON, and what the model was shown beyond it, where that was kept.
_BOTH = "(SELECT 0 AS more UNION ALL SELECT 1)"
OWNED = {
    "responses": """
        SELECT r.id, r.created_at, r.body FROM responses r WHERE r.owner = :owner ORDER BY r.created_at, r.id
    """,
    "response_items": f"""
        SELECT i.response_id, CASE WHEN more THEN 'shown' WHEN i.dir = 0 THEN 'input' ELSE 'output' END,
               CASE WHEN more THEN i.shown ELSE i.body END
        FROM responses r CROSS JOIN response_items i ON i.response_id = r.id CROSS JOIN {_BOTH}
        WHERE r.owner = :owner AND (NOT more OR i.shown IS NOT NULL)
        ORDER BY r.created_at, r.id, i.dir, i.seq, more
    """,
    "conversations": """
        SELECT id, created_at, metadata FROM conversations WHERE owner = :owner ORDER BY created_at, id
    """,
    "conversation_items": f"""
        SELECT conversation_id, CASE WHEN more THEN pos || ' shown' ELSE pos END,
               CASE WHEN more THEN shown ELSE body END
        FROM conversation_items CROSS JOIN {_BOTH} WHERE owner = :owner AND (NOT more OR shown IS NOT NULL)
        ORDER BY conversation_id, pos, more
    """,
    "prompts": "SELECT id, name, metadata FROM prompts WHERE owner = :owner ORDER BY created_at, id",
    "prompt_versions": """
        SELECT v.prompt_id, v.version, v.body FROM prompts p CROSS JOIN prompt_versions v ON v.prompt_id = p.id
        WHERE p.owner = :owner ORDER BY v.prompt_id, v.version
    """,
    "usage_days": """
        SELECT day, model, json_object(
          'upstream', upstream, 'calls', calls, 'input_tokens', input_tokens, 'cached_tokens', cached_tokens,
          'output_tokens', output_tokens, 'reasoning_tokens', reasoning_tokens, 'estimated_calls', estimated_calls,
          'estimated_input_tokens', estimated_input_tokens, 'estimated_output_tokens', estimated_output_tokens,
          'cost', cost
        ) FROM usage_days WHERE owner = :owner ORDER BY day, model, upstream
    """,
}
"""What is exported of an owner, by kind: two columns that name a row, and its JSON."""

_DELETE = (
    "DELETE FROM chains WHERE id IN (SELECT chain_id FROM responses WHERE owner = :owner LIMIT :limit)",
    "DELETE FROM conversations WHERE rowid IN (SELECT rowid FROM conversations WHERE owner = :owner LIMIT :limit)",
    "DELETE FROM idempotency WHERE rowid IN (SELECT rowid FROM idempotency WHERE owner = :owner LIMIT :limit)",
    "DELETE FROM prompts WHERE rowid IN (SELECT rowid FROM prompts WHERE owner = :owner LIMIT :limit)",
    "DELETE FROM usage_days WHERE rowid IN (SELECT rowid FROM usage_days WHERE owner = :owner LIMIT :limit)",
)
_OWNERS = """
SELECT owner, sum(responses), sum(conversations), sum(prompts), sum(files) FROM (
  SELECT owner, 1 AS responses, 0 AS conversations, 0 AS prompts, 0 AS files FROM responses
  UNION ALL SELECT owner, 0, 1, 0, 0 FROM conversations
  UNION ALL SELECT owner, 0, 0, 1, 0 FROM prompts
  UNION ALL SELECT owner, 0, 0, 0, 1 FROM files
) GROUP BY owner ORDER BY owner
"""

# Owners that a key tells apart have names that begin with "b:" (`doors/owners.py`).
_ANY = "SELECT EXISTS (SELECT 1 FROM {table})"
_HASHED = "SELECT EXISTS (SELECT 1 FROM {table} WHERE owner >= 'b:' AND owner < 'b;')"
_TABLES = {SESSIONS_FILE: ("responses", "conversations", "prompts", "files"), VECTORS_FILE: ("vector_stores",)}


def has_rows(folder: Path, *, hashed: bool) -> bool:
    """Whether the databases in this folder hold anything; with `hashed`, anything of an owner who is known by the hash
    of a token. Raises `StoreError`."""
    question = _HASHED if hashed else _ANY
    for name, tables in _TABLES.items():
        path = folder / name
        if not path.exists():
            continue
        with closing(_reader(path)) as connection:
            there = {row[0] for row in _read(connection, path, "SELECT name FROM sqlite_schema", {})}
            for table in tables:
                if table in there and next(_read(connection, path, question.format(table=table), {}))[0]:
                    return True
    return False


def list_owners(path: Path) -> list[OwnerCounts]:
    """Every owner of anything. Raises `StoreError`."""
    with closing(_reader(path)) as connection:
        return [OwnerCounts(*row) for row in _read(connection, path, _OWNERS, {})]


def export_owner(path: Path, owner: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Everything of an owner, kind by kind, as it was at one moment. Raises `StoreError`."""
    with closing(_reader(path)) as connection:
        connection.execute("BEGIN")
        for kind, sql in OWNED.items():
            for row in _read(connection, path, sql, {"owner": owner}):
                yield kind, row


def delete_owner(path: Path, owner: str) -> int:
    """Delete everything of an owner but files and vector stores, in pieces that let requests through.

    Returns how many chains, conversations and prompts went. Raises `StoreError`.
    """
    gone = 0
    with closing(_writer(path)) as connection:
        for sql in _DELETE:
            while True:
                with store_errors("Deleting", path):
                    changed = wait_for_lock(
                        lambda sql=sql: connection.execute(sql, {"owner": owner, "limit": _AT_ONCE})  # type: ignore[misc]
                    ).rowcount
                gone += changed
                if not changed:
                    break
    return gone


def vacuum(path: Path) -> tuple[int, int]:
    """Give unused space back to the file system; the size before and after, in bytes, each with what
    waits in the log of writes. Raises `StoreError`.

    Writers wait while it runs, and the file is rewritten: there must be room for it twice.
    """
    before = _size(path)
    with closing(_writer(path)) as connection, store_errors("Rewriting", path):
        wait_for_lock(lambda: connection.execute("VACUUM"))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return before, _size(path)


def _size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def _reader(path: Path) -> sqlite3.Connection:
    with store_errors("Opening", path):
        return sqlite3.connect(reader_uri(path), uri=True, isolation_level=None, timeout=5.0)


def _writer(path: Path) -> sqlite3.Connection:
    with store_errors("Opening", path):
        return connect_writer(path)


def _read(connection: sqlite3.Connection, path: Path, sql: str, named: dict[str, str]) -> Iterator[tuple[Any, ...]]:
    with store_errors("Reading", path):
        yield from connection.execute(sql, named)
