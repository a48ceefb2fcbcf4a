"""The SQL of conversations, by name.

Lives here: the statements, and who may change a conversation. Not here: their order (`conversations.py`).

Parameters are `$1` the owner and `$2` the conversation, unless said otherwise.
"""

from __future__ import annotations

from antiphon.engine.ports.retention import SWEEPER
from antiphon.stores.postgres.page_sql import within
from antiphon.stores.postgres.values import NOW

# Places begin where none of an earlier conversation of the same id can have been: where clients choose the ids, one may
# be deleted and come again, and a response that was made in the first must not find the second's items.
_PLACES = 24

INSERT = f"""
INSERT INTO conversations (owner, id, created_at, updated_at, first_pos, next_pos, metadata)
SELECT $1, $2, $3, {NOW}, place, place, $4 FROM (SELECT nextval('conversation_places') << {_PLACES} AS place) AS given
"""
INSERT_UNKNOWN = f"{INSERT} ON CONFLICT DO NOTHING"

_COLUMNS = "id, created_at, metadata"
GET = f"SELECT {_COLUMNS} FROM conversations WHERE owner = $1 AND id = $2"
UPDATE_METADATA = f"""
UPDATE conversations SET metadata = $3, updated_at = greatest(updated_at, {NOW})
WHERE owner = $1 AND id = $2 AND locked_by IS DISTINCT FROM '{SWEEPER}' RETURNING {_COLUMNS}
"""

# First the row, so that the next statement sees all that its last holder did.
HOLD = "SELECT 1 FROM conversations WHERE owner = $1 AND id = $2 FOR UPDATE"

UNLOCKED = """(locked_by IS NULL OR (
  locked_until <= clock_timestamp() AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.response_id = locked_by)
))"""
DELETE = f"DELETE FROM conversations WHERE owner = $1 AND id = $2 AND {UNLOCKED} RETURNING 1"

# A page lies strictly between two conversations of the list ($2, $3), either of which may be absent.
_LIST = """
SELECT id, created_at, metadata FROM conversations
WHERE owner = $1
  AND (created_at, id) > (
    coalesce((SELECT created_at FROM conversations WHERE owner = $1 AND id = $2), -1), coalesce($2, ''))
  AND (created_at, id) < (
    coalesce((SELECT created_at FROM conversations WHERE owner = $1 AND id = $3), 9223372036854775807),
    coalesce($3, ''))
ORDER BY created_at {order}, id {order} LIMIT $4
"""
LIST_FORWARD = _LIST.format(order="ASC")
LIST_BACKWARD = _LIST.format(order="DESC")

# Places are given out by the row of the conversation, so that two writers never get the same ones.
ADD_ITEMS = f"""
WITH room AS (
  UPDATE conversations SET next_pos = next_pos + cardinality($3::text[]), updated_at = greatest(updated_at, {NOW})
  WHERE owner = $1 AND id = $2 AND {UNLOCKED} RETURNING owner, id, next_pos - cardinality($3::text[]) AS place
), added AS (
  INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body, shown)
  SELECT room.owner, room.id, room.place + given.seq - 1, given.item_id, given.type, given.body, given.shown
  FROM room, unnest($3::text[], $4::text[], $5::bytea[], $6::bytea[])
    WITH ORDINALITY AS given (item_id, type, body, shown, seq)
  ORDER BY given.seq
)
SELECT 1 FROM room
"""
DELETE_ITEM = f"""
DELETE FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND item_id = $3
  AND EXISTS (SELECT 1 FROM conversations WHERE owner = $1 AND id = $2 AND {UNLOCKED})
RETURNING 1
"""
GET_ITEM = """
SELECT item_id, type, body FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND item_id = $3
"""

# The conversation is the left side: no row means that there is none, a row without an item that it is empty.
LOAD = f"""
SELECT c.bytes AS size, i.item_id, i.type, i.body, i.shown FROM conversations c
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND c.bytes <= $4
WHERE c.owner = $1 AND c.id = $2 AND c.locked_by IS DISTINCT FROM '{SWEEPER}' ORDER BY i.pos LIMIT $3
"""
# Between the items $3 and $4, at most $5 of them and $6 bytes.
_ITEMS = """
WITH edge (low, high) AS (
  SELECT (SELECT pos FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND item_id = $3),
         (SELECT pos FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND item_id = $4)
),
page (place, size) AS (
  SELECT pos, length(body) FROM conversation_items
  WHERE owner = $1 AND conversation_id = $2
    AND pos > coalesce((SELECT low FROM edge), -1) AND pos < coalesce((SELECT high FROM edge), 9223372036854775807)
  ORDER BY pos {order} LIMIT $5
),
{cut}
SELECT edge.low AS low, edge.high AS high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM conversations c CROSS JOIN edge LEFT JOIN cut ON true
LEFT JOIN conversation_items i ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos = cut.place
WHERE c.owner = $1 AND c.id = $2
ORDER BY cut.place {order}
"""
ITEMS_FORWARD = _ITEMS.format(order="ASC", cut=within("place ASC", "$6"))
ITEMS_BACKWARD = _ITEMS.format(order="DESC", cut=within("place DESC", "$6"))

# One item per wanted id ($2), the newest; no bodies where they take more than $3 bytes.
FIND_ITEMS = """
WITH found AS MATERIALIZED (
  SELECT i.conversation_id, i.pos, i.size FROM unnest($2::text[]) AS wanted (id) CROSS JOIN LATERAL (
    SELECT conversation_id, pos, length(body) + coalesce(length(shown), 0) AS size FROM conversation_items
    WHERE item_id = wanted.id AND owner = $1 ORDER BY number DESC LIMIT 1
  ) AS i
), total AS MATERIALIZED (SELECT sum(size) <= $3 AS fits FROM found)
SELECT i.item_id, i.type, CASE WHEN fits THEN i.body END AS body, CASE WHEN fits THEN i.shown END AS shown
FROM total CROSS JOIN found
JOIN conversation_items i ON i.owner = $1 AND i.conversation_id = found.conversation_id AND i.pos = found.pos
"""

# A holder ($3, for $4 seconds) may come again: a response that was queued takes its conversation again when it runs.
_TAKE = """
UPDATE conversations SET locked_by = $3, locked_until = clock_timestamp() + make_interval(secs => $4)
WHERE owner = $1 AND id = $2
"""
# The common case: nobody has it, and the holder is no stored response (one in the background, which may be over).
LOCK_FREE = f"{_TAKE} AND locked_by IS NULL AND NOT EXISTS (SELECT 1 FROM responses WHERE id = $3) RETURNING 1"
# A background response that is over (it was cancelled) takes nothing: its worker does not know that yet.
LOCK = f"""{_TAKE} AND ({UNLOCKED} OR locked_by = $3)
  AND NOT EXISTS (SELECT 1 FROM responses WHERE id = $3 AND status NOT IN ('queued', 'in_progress'))
RETURNING 1
"""
# Of whoever has the lock, so without an owner. $1: the holder.
RELEASE = "UPDATE conversations SET locked_by = NULL, locked_until = NULL WHERE locked_by = $1"
# $1: the holders, $2: seconds. Rows in one order, as everywhere where several are locked.
RENEW = """
WITH held AS MATERIALIZED (
  SELECT owner, id FROM conversations WHERE locked_by = ANY($1::text[]) ORDER BY owner, id FOR UPDATE
)
UPDATE conversations c SET locked_until = clock_timestamp() + make_interval(secs => $2) FROM held
WHERE c.owner = held.owner AND c.id = held.id AND c.locked_by = ANY($1::text[]) RETURNING c.locked_by
"""
