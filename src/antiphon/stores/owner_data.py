"""What is exported of an owner, and what of it is deleted, in the words of any backend.

Lives here: the SQL, and how a row is exported. Not here: how a backend reads and deletes while others work
(`sqlite/owner_data.py`, `postgres/owner_data.py`), vector stores where they have a database of their own, files'
contents.

Invariant: everything that has an owner is in what `owned` gives, or is a part or a count of that; tests compare it with
the schemas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from antiphon.engine.ports.owner_data import ExportedRow
from antiphon.stores.bodies import Bodies

AT_ONCE = 100
"""Rows that are read, or deleted, at once."""

# A row's JSON, and what the model was shown beyond it, where that was kept.
_BOTH = "(SELECT 1 = 0 AS more UNION ALL SELECT 1 = 1) AS both_parts"


def owned(place: str) -> dict[str, str]:
    """What is exported of an owner, by kind: two columns that name a row, and its JSON (`body`), or the fields of that.
    `place`: an item's place in its conversation."""
    return {
        "responses": "SELECT id, created_at, body FROM responses WHERE owner = :owner ORDER BY created_at, id",
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
        "usage_days": """
            SELECT day, model, upstream, calls, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
                   estimated_calls, estimated_input_tokens, estimated_output_tokens, cost
            FROM usage_days WHERE owner = :owner ORDER BY day, model, upstream
        """,
    }


def exported(kind: str, fields: Mapping[str, Any], bodies: Bodies) -> ExportedRow:
    """The row, of its columns by name; `bodies` opens what is sealed."""
    (_, row_id), (_, of), *others = fields.items()
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
DELETE FROM usage_days WHERE owner = :owner AND (day, model, upstream) IN (
  SELECT day, model, upstream FROM usage_days WHERE owner = :owner LIMIT :limit
)""",
)
"""Each in pieces, which lock rows in the order in which all others do."""
