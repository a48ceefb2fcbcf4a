"""The SQL of ages, by name.

Lives here: what is old, and the statements by which it goes. Not here: their order (`retention.py`).

What goes is locked in one statement and looked at in another, which sees what was done before the lock was had.
`$1` of what locks is an age in milliseconds, by the database's clock.

What a piece deletes is counted in rows, those included in which PostgreSQL keeps what is too long for a table's own
(about 2000 bytes each): deleting a megabyte takes as long as deleting five hundred rows.
"""

from __future__ import annotations

from antiphon.engine.ports.retention import SWEEPER

# What goes needs not be on the disk when others may have its locks: after a crash it is deleted once more.
NO_WAIT = "SET LOCAL synchronous_commit = off"
# Of all processes: "retention" in ASCII, shortened.
ONE_AT_A_TIME = "SELECT pg_try_advisory_xact_lock(7310579610909569902)"
_BEFORE = "((extract(epoch FROM now()) * 1000)::bigint - $1)"

# A chain on which something is being saved is locked by that, and its time comes later. Whatever is added to a chain
# makes it young, so it is no more among these when the lock is had.
LOCK_CHAINS = f"""
SELECT old.id FROM chains old
WHERE old.updated_at < {_BEFORE} AND NOT EXISTS (
  SELECT 1 FROM jobs j JOIN responses r ON r.id = j.response_id WHERE r.chain_id = old.id
)
ORDER BY old.updated_at LIMIT $2 FOR UPDATE OF old SKIP LOCKED
"""
# A chain's responses come in the order in which they were stored, its first one first. Rows are counted no further than
# they matter ($2).
RESPONSES = """
SELECT chain.id AS chain_id, r.id, 1 + coalesce(r.own_bytes, 0) / 2000
  + (SELECT count(*) FROM (SELECT 1 FROM response_items i WHERE i.response_id = r.id LIMIT $2) AS items)
  + (SELECT coalesce(sum(1 + size / 2000), 0)::bigint FROM (
      SELECT length(e.data) AS size FROM response_events e WHERE e.response_id = r.id LIMIT $2
    ) AS events) AS rows
FROM unnest($1::text[]) WITH ORDINALITY AS chain (id, place) LEFT JOIN responses r ON r.chain_id = chain.id
ORDER BY chain.place, r.number LIMIT $2
"""
DELETE_CHAINS = "DELETE FROM chains WHERE id = ANY($1::text[]) RETURNING 1"
# From here on nothing continues it (whoever saves looks at `expires_at`), and it stays the oldest.
CLOSE_CHAIN = """
UPDATE chains SET expires_at = (extract(epoch FROM now()) * 1000)::bigint, updated_at = 0 WHERE id = $1
"""
DELETE_RESPONSES = "DELETE FROM responses WHERE chain_id = $1 AND id = ANY($2::text[])"

_IDLE = f"""(c.locked_by IS NULL OR c.locked_by = '{SWEEPER}' OR (
  c.locked_until <= clock_timestamp() AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = c.locked_by)
))"""
LOCK_CONVERSATIONS = f"""
SELECT c.owner, c.id FROM conversations c WHERE c.updated_at < {_BEFORE} AND {_IDLE}
ORDER BY c.updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
CONVERSATIONS = f"""
SELECT c.owner, c.id, 1 + c.bytes / 2000 + (
  SELECT count(*) FROM (
    SELECT 1 FROM conversation_items i WHERE i.owner = c.owner AND i.conversation_id = c.id LIMIT $3
  ) AS items
) AS rows
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS old (owner, id, place) JOIN conversations c USING (owner, id)
WHERE {_IDLE} ORDER BY old.place
"""
CLOSE_CONVERSATION = f"""
UPDATE conversations SET locked_by = '{SWEEPER}', locked_until = 'infinity', updated_at = 0
WHERE owner = $1 AND id = $2
"""
DELETE_ITEMS = """
DELETE FROM conversation_items WHERE owner = $1 AND conversation_id = $2 AND pos IN (
  SELECT pos FROM (
    SELECT pos, sum(1 + size / 2000) OVER (ORDER BY pos) AS rows, row_number() OVER (ORDER BY pos) AS place FROM (
      SELECT pos, length(body) + coalesce(length(shown), 0) AS size FROM conversation_items
      WHERE owner = $1 AND conversation_id = $2 ORDER BY pos LIMIT $3
    ) AS first
  ) AS counted WHERE rows <= $3 OR place = 1
) RETURNING 1
"""
DELETE_CONVERSATIONS = """
DELETE FROM conversations c USING unnest($1::text[], $2::text[]) AS old (owner, id)
WHERE c.owner = old.owner AND c.id = old.id RETURNING 1
"""

# Streams come in the order of an index, which is near enough.
LOCK_STREAMS = f"""
SELECT r.id FROM responses r
WHERE r.background = 1 AND r.stored_at < {_BEFORE} AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)
ORDER BY r.created_at LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
"""
STREAMS = """
SELECT r.id, 1 + (
  SELECT coalesce(sum(1 + size / 2000), 0)::bigint FROM (
    SELECT length(e.data) AS size FROM response_events e WHERE e.response_id = r.id LIMIT $2
  ) AS events
) AS rows
FROM unnest($1::text[]) WITH ORDINALITY AS r (id, place) ORDER BY r.place
"""
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id = ANY($1::text[])"
CLOSE_STREAMS = "UPDATE responses SET background = 2 WHERE id = ANY($1::text[]) RETURNING 1"
