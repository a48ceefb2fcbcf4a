"""Exports and deletes the stored data of one owner (a tenant), for any backend.

Lives here: the SQL, the counts per owner, the form of an exported row, and the deletion of vector stores. Not here: how
a backend reads and deletes while requests run (`sqlite/owner_data.py`, `postgres/owner_data.py`), the contents of
files.

An export contains the vector stores and their files with attributes. The export omits the chunks, because the exported
files contain their text.

Invariant: `owned` covers every table with an owner column, except tables that hold only parts or counts of covered
tables. Tests compare `owned` with the schemas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from antiphon.engine.ports.owner_data import ExportedRow, OwnerCounts
from antiphon.stores.backend import VectorDatabase
from antiphon.stores.bodies import Bodies
from antiphon.stores.tables import Tables

AT_ONCE = 100
"""The number of rows per read or deletion."""

_COUNTED = {
    # A withdrawn id belongs to no owner (`postgres/withdrawals.py`).
    "responses": "responses WHERE status <> 'withdrawn'",
    "conversations": "conversations",
    "prompts": "prompts",
    "files": "files",
    "vector_stores": "vector_stores WHERE owner IS NOT NULL",
}
_VECTOR_STORES = "SELECT id FROM vector_stores WHERE owner = :owner"

# Yields two output rows per item: its JSON (`body`), and the additional text that the model saw (`shown`, if stored).
_BOTH = "(SELECT 1 = 0 AS more UNION ALL SELECT 1 = 1) AS both_parts"


def counting(*kinds: str) -> str:
    """Return a query that counts these kinds of objects. A result row has a kind, an owner and the count."""
    return " UNION ALL ".join(
        f"SELECT '{kind}', owner, count(*) FROM {_COUNTED[kind]} GROUP BY owner" for kind in kinds
    )


def counted(rows: Iterable[Iterable[Any]]) -> list[OwnerCounts]:
    """Convert the rows of a `counting` query to counts per owner, sorted by owner."""
    counts: dict[str, dict[str, int]] = {}
    for kind, owner, count in rows:
        counts.setdefault(owner, {})[kind] = count
    return [OwnerCounts(owner, **counts[owner]) for owner in sorted(counts)]


def owned(place: str) -> dict[str, str]:
    """Return the SQL queries that export one owner, by the kind of the rows.

    Each query selects two columns that identify a row, then the row's JSON
    (`body`) or its fields. `place`: the SQL expression for an item's position in its conversation."""
    return {
        "responses": """
            SELECT id, created_at, status, body FROM responses WHERE owner = :owner ORDER BY created_at, id
        """,
        "response_items": f"""
            SELECT i.response_id, CASE WHEN more THEN 'shown' WHEN i.dir = 0 THEN 'input' ELSE 'output' END AS part,
                   CASE WHEN more THEN i.shown ELSE i.body END AS body
            FROM responses r CROSS JOIN response_items i CROSS JOIN {_BOTH}
            WHERE r.owner = :owner AND i.response_id = r.id AND (NOT more OR i.shown IS NOT NULL)
            ORDER BY r.created_at, r.id, i.dir, i.seq, more
        """,
        "conversations": """
            SELECT id, created_at, metadata AS body FROM conversations WHERE owner = :owner ORDER BY created_at, id
        """,
        "conversation_items": f"""
            SELECT conversation_id, CASE WHEN more THEN pos || ' shown' ELSE {place} END AS part,
                   CASE WHEN more THEN shown ELSE body END AS body
            FROM conversation_items CROSS JOIN {_BOTH} WHERE owner = :owner AND (NOT more OR shown IS NOT NULL)
            ORDER BY conversation_id, pos, more
        """,
        "prompts": "SELECT id, name, metadata AS body FROM prompts WHERE owner = :owner ORDER BY created_at, id",
        "prompt_versions": """
            SELECT v.prompt_id, v.version, v.body FROM prompts p CROSS JOIN prompt_versions v
            WHERE p.owner = :owner AND v.prompt_id = p.id ORDER BY v.prompt_id, v.version
        """,
        "requests": """
            SELECT id, ended_at, request_id, model, upstream, response_id, previous_id, conversation_id, outcome, code,
                   http_status, took, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost, detail
            FROM requests WHERE owner = :owner ORDER BY ended_at, id
        """,
        "usage_days": """
            SELECT day, model, upstream, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
                   estimated_calls, estimated_input_tokens, estimated_output_tokens, cost
            FROM usage_days WHERE owner = :owner ORDER BY day, model, upstream
        """,
    }


def owned_vectors(number: str, store: str) -> dict[str, str]:
    """Return the queries that export vector stores, by kind, in the form of `owned`. `number`: the column with a
    store's number. `store`: the column that refers to a store."""
    return {
        "vector_stores": f"""
            SELECT id, created_at, name, description, metadata, expires_days
            FROM vector_stores WHERE owner = :owner ORDER BY {number}
        """,
        "vector_store_files": f"""
            SELECT f.file_id, s.id AS store, f.filename, f.status, f.attributes
            FROM vector_stores s JOIN vector_files f ON f.{store} = s.{number}
            WHERE s.owner = :owner ORDER BY s.{number}, f.created_at
        """,
    }


def exported(kind: str, fields: Mapping[str, Any], bodies: Bodies) -> ExportedRow:
    """Convert a row of an `owned` query (columns by name) to an exported row. `bodies` decrypts sealed bodies."""
    (_, row_id), (_, of), *others = fields.items()
    if kind == "responses":
        return ExportedRow(kind, row_id, of, json.loads(bodies.open_response(fields["body"], fields["status"])))
    data = {name: json.loads(bodies.open(value)) if isinstance(value, bytes) else value for name, value in others}
    return ExportedRow(kind, row_id, of, data["body"] if list(data) == ["body"] else data)


DELETE = (
    """
DELETE FROM chains WHERE id IN (
  SELECT id FROM chains WHERE id IN (SELECT chain_id FROM responses WHERE owner = :owner LIMIT :limit)
  ORDER BY id FOR UPDATE
)""",
    """
DELETE FROM conversations WHERE owner = :owner AND id IN (
  SELECT id FROM conversations WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE
)""",
    """
DELETE FROM idempotency WHERE owner = :owner AND key IN (
  SELECT key FROM idempotency WHERE owner = :owner ORDER BY key LIMIT :limit FOR UPDATE
)""",
    "DELETE FROM prompts WHERE id IN (SELECT id FROM prompts WHERE owner = :owner LIMIT :limit)",
    """
DELETE FROM request_records WHERE id IN (
  SELECT id FROM request_records WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE
)""",
    """
DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE owner = :owner ORDER BY id LIMIT :limit FOR UPDATE)""",
    """
DELETE FROM usage_days WHERE owner = :owner AND (day, model, upstream) IN (
  SELECT day, model, upstream FROM usage_days WHERE owner = :owner LIMIT :limit
)""",
)
"""The statements that delete an owner's data. The caller repeats each statement, which deletes at most `:limit` rows,
until it deletes no row. The statements lock rows in the same order as all other statements, to avoid deadlocks."""


async def delete_vector_stores(vectors: VectorDatabase, tables: Tables, owner: str) -> int:
    """Delete the owner's vector stores with all their chunks. Returns the number of deleted stores. `tables`: the
    tables of the database that holds the vector stores. Raises `StoreError`."""
    gone = 0
    for (store_id,) in await tables.fetch(_VECTOR_STORES, {"owner": owner}):
        gone += await vectors.stores.delete(owner, store_id)
    while await vectors.ingestion.sweep():
        pass
    return gone
