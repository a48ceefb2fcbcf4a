"""The SQL that reads responses and their items, by name.

Lives here: text. Not here: what the rows mean (`responses.py`), storing one (`turns.py`), deleting one (`deleting.py`).

A chain never crosses owners, which is enforced where a response is inserted; so reading one has to look at the owner of
its last response only.

Invariant: sizes are known before anything of that size is read.
"""

from __future__ import annotations

from antiphon.engine.ports.retention import SWEEPER
from antiphon.stores.tables import within

# Newest turn first in `turn`. A chain over a limit stops at the seed and brings no item; its size is in
# `history_items` and `history_bytes`. `depth < $3` can only matter for a damaged database, in which a chain might run
# in a circle. $1: id, $2: owner, $3: most items, $4: most bytes.
LOAD_CHAIN = """
WITH RECURSIVE turn (id, prev_id, depth, history_items, history_bytes, conversation_id, conversation_pos, status) AS (
  SELECT id, CASE WHEN history_items <= $3::bigint AND history_bytes <= $4::bigint THEN prev_id END, 0, history_items,
         history_bytes, conversation_id, conversation_pos, status
  FROM responses WHERE id = $1::text AND owner = $2::text
  UNION ALL
  SELECT r.id, r.prev_id, turn.depth + 1, r.history_items, r.history_bytes, r.conversation_id, r.conversation_pos,
         r.status
  FROM turn JOIN responses r ON r.id = turn.prev_id WHERE turn.depth < $3::bigint
)
SELECT turn.prev_id, turn.history_items, turn.history_bytes, turn.status, turn.conversation_id, turn.conversation_pos,
       i.item_id, i.type, i.body, i.shown
FROM turn LEFT JOIN response_items i ON i.response_id = turn.id
  AND turn.history_items <= $3::bigint AND turn.history_bytes <= $4::bigint
ORDER BY turn.depth DESC, i.dir, i.seq
"""

# What was in the conversation before the response at the beginning of a chain; nothing when it is another conversation,
# or one that is being cleared away, of which some may be gone already.
# $1: owner, $2: conversation, $3: place, $4: most bytes, $5: most items.
LOAD_BEFORE = f"""
WITH size AS MATERIALIZED (
  SELECT coalesce(sum(length(body) + coalesce(length(shown), 0)), 0)::bigint AS bytes FROM conversation_items
  WHERE owner = $1::text AND conversation_id = $2::text AND pos < $3::bigint
)
SELECT size.bytes AS size, i.item_id, i.type, i.body, i.shown
FROM conversations c CROSS JOIN size LEFT JOIN conversation_items i
  ON i.owner = c.owner AND i.conversation_id = c.id AND i.pos < $3::bigint AND size.bytes <= $4::bigint
WHERE c.owner = $1::text AND c.id = $2::text AND c.first_pos <= $3::bigint
  AND c.locked_by IS DISTINCT FROM '{SWEEPER}'
ORDER BY i.pos LIMIT $5::bigint
"""

# One item per wanted id, however often clients have used the id: an output before an input, the newest before older
# ones. $1: owner, $2: ids, $3: most bytes.
LOAD_ITEMS = """
WITH found AS MATERIALIZED (
  SELECT f.* FROM (SELECT DISTINCT id FROM unnest($2::text[]) AS w (id)) AS wanted CROSS JOIN LATERAL (
    SELECT i.response_id, i.dir, i.seq, length(i.body) + coalesce(length(i.shown), 0) AS size
    FROM response_items i JOIN responses r ON r.id = i.response_id
    WHERE i.item_id = wanted.id AND r.owner = $1::text
    ORDER BY i.dir DESC, r.number DESC, i.seq DESC LIMIT 1
  ) AS f
),
whole AS MATERIALIZED (SELECT coalesce(sum(size), 0) <= $3::bigint AS fits FROM found)
SELECT i.item_id, i.type, CASE WHEN whole.fits THEN i.body END AS body, CASE WHEN whole.fits THEN i.shown END AS shown
FROM found JOIN response_items i USING (response_id, dir, seq) CROSS JOIN whole
"""

# The response itself is the row before its items, so that both come from one snapshot.
GET_RESPONSE = """
SELECT -1 AS seq, id AS item_id, status AS type, body FROM responses WHERE id = $1::text AND owner = $2::text
UNION ALL
SELECT i.seq, i.item_id, i.type, i.body
FROM responses r JOIN response_items i ON i.response_id = r.id AND i.dir = 1
WHERE r.id = $1::text AND r.owner = $2::text
ORDER BY 1
"""

# A page lies strictly between two items of the list (`low` and `high`, either may be absent). No row: no such
# response. A row without an item: an empty page. $1: id, $2: owner, $3: low, $4: high, $5: limit, $6: most bytes.
_INPUT_ITEMS = """
WITH edge AS MATERIALIZED (
  SELECT (SELECT min(seq) FROM response_items WHERE response_id = $1::text AND dir = 0 AND item_id = $3::text) AS low,
         (SELECT min(seq) FROM response_items WHERE response_id = $1::text AND dir = 0 AND item_id = $4::text) AS high
),
page (place, size) AS (
  SELECT i.seq, length(i.body) FROM response_items i
  WHERE i.response_id = $1::text AND i.dir = 0
    AND i.seq > coalesce((SELECT low FROM edge), -1) AND i.seq < coalesce((SELECT high FROM edge), 2147483647)
  ORDER BY i.seq {order} LIMIT $5::bigint
),
{cut}
SELECT edge.low, edge.high, i.item_id, i.type, CASE WHEN cut.fits THEN i.body END AS body
FROM responses r CROSS JOIN edge LEFT JOIN cut ON true
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 0 AND i.seq = cut.place
WHERE r.id = $1::text AND r.owner = $2::text
ORDER BY cut.place {order}
"""
INPUT_ITEMS_FORWARD = _INPUT_ITEMS.format(order="ASC", cut=within("place ASC", "$6::bigint"))
INPUT_ITEMS_BACKWARD = _INPUT_ITEMS.format(order="DESC", cut=within("place DESC", "$6::bigint"))

# A page lies strictly behind the edge, which is the cursor's place or the list's end. The rows of a page first, then
# their output items, all from one snapshot. $1: owner, $2: limit, $3: most bytes, $4: cursor.
_LIST = """
WITH chosen AS MATERIALIZED (
  SELECT r.number, r.id, r.created_at AS at, length(r.body) AS size FROM responses r
  WHERE r.owner = $1::text {behind} ORDER BY r.created_at {order}, r.number {order} LIMIT $2::bigint
),
page (place, at, size) AS (
  SELECT c.number, c.at, c.size + coalesce(
    (SELECT sum(length(o.body)) FROM response_items o WHERE o.response_id = c.id AND o.dir = 1), 0)
  FROM chosen c
),
{cut}
SELECT r.id, r.status, CASE WHEN cut.fits THEN r.body END AS response, i.item_id, i.type, i.body
FROM cut JOIN chosen ON chosen.number = cut.place JOIN responses r ON r.id = chosen.id
LEFT JOIN response_items i ON i.response_id = r.id AND i.dir = 1 AND cut.fits
ORDER BY r.created_at {order}, r.number {order}, i.seq
"""
_BEHIND = """
AND (r.created_at, r.number) {sign} (SELECT created_at, number FROM responses WHERE id = $4::text AND owner = $1::text)
"""
_OLDEST, _NEWEST = within("at ASC, place ASC", "$3::bigint"), within("at DESC, place DESC", "$3::bigint")
LIST_FORWARD = _LIST.format(order="ASC", behind="", cut=_OLDEST)
LIST_BACKWARD = _LIST.format(order="DESC", behind="", cut=_NEWEST)
LIST_FORWARD_BEHIND = _LIST.format(order="ASC", behind=_BEHIND.format(sign=">"), cut=_OLDEST)
LIST_BACKWARD_BEHIND = _LIST.format(order="DESC", behind=_BEHIND.format(sign="<"), cut=_NEWEST)
IS_RESPONSE = "SELECT 1 FROM responses WHERE id = $1 AND owner = $2"

# A real write, so that a full disk or a lost right is seen before a response fails for it. Of several rows, so that
# processes do not wait for each other's commits.
PROBE = """
INSERT INTO sweeps (what, due_at) VALUES ('probe ' || pg_backend_pid() % 16, now())
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at
"""
