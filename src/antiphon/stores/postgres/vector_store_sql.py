"""The SQL of vector stores, their files and batches, by name.

Lives here: statements. Not here: who runs them (`vector_stores.py`), ingestion (`ingestion.py`), searching
(`chunk_index.py`).

Invariant: every statement names the owner, or comes in a transaction after one that does and holds the store's row.
"""

from __future__ import annotations

_DAY = 86_400_000

# $1 the owner, $2 the store's id.
INSERT_STORE = f"""
INSERT INTO vector_stores (owner, id, name, description, metadata, expires_days, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, unix_ms() + $6::bigint * {_DAY})
RETURNING number
"""
_COUNT = "(SELECT count(*) FROM vector_files f WHERE f.store_number = s.number AND f.status = '{0}') AS {0}"
_STORE = f"""
SELECT s.id, s.created_at, s.last_active_at, s.name, s.description, s.metadata, s.expires_days, s.expires_at,
       coalesce(s.expires_at <= unix_ms(), false) AS expired,
       (SELECT coalesce(sum(usage_bytes), 0)::bigint FROM vector_files f WHERE f.store_number = s.number)
         AS usage_bytes,
       {_COUNT.format("in_progress")}, {_COUNT.format("completed")}, {_COUNT.format("failed")},
       {_COUNT.format("cancelled")}
FROM vector_stores s
"""
GET_STORE = _STORE + "WHERE s.owner = $1 AND s.id = $2"
# $2 and $3: the cursors; strictly between them.
_PAGE = """
WHERE s.owner = $1
  AND ($2::text IS NULL OR s.number > (SELECT number FROM vector_stores WHERE id = $2 AND owner = $1))
  AND ($3::text IS NULL OR s.number < (SELECT number FROM vector_stores WHERE id = $3 AND owner = $1))
ORDER BY s.number {} LIMIT $4
"""
STORES_FORWARD, STORES_BACKWARD = _STORE + _PAGE.format("ASC"), _STORE + _PAGE.format("DESC")
# $3 whether there is a new name, $4 it; $5 metadata, $6 days where they change; $7 whether it expires no more.
UPDATE_STORE = f"""
UPDATE vector_stores SET
  name = CASE WHEN $3 THEN $4 ELSE name END, metadata = coalesce($5, metadata),
  expires_days = CASE WHEN $7 THEN NULL ELSE coalesce($6::bigint, expires_days) END,
  last_active_at = unix_ms(),
  expires_at = unix_ms() + CASE WHEN $7 THEN NULL ELSE coalesce($6::bigint, expires_days) END * {_DAY}
WHERE owner = $1 AND id = $2 RETURNING 1
"""
# What somebody else writes to at this moment is in use anyway; what was used a moment ago is so still.
TOUCH = f"""
UPDATE vector_stores SET last_active_at = unix_ms(), expires_at = unix_ms() + expires_days * {_DAY}
WHERE number IN (
  SELECT number FROM vector_stores
  WHERE owner = $1 AND id = ANY($2::text[]) AND (expires_at IS NULL OR expires_at > unix_ms())
    AND last_active_at <= unix_ms() - $3::bigint
  FOR NO KEY UPDATE SKIP LOCKED
)
"""
# Its row is held: nobody else adds or takes a file meanwhile. It is used, and other files are completed afterwards.
HOLD_STORE = f"""
UPDATE vector_stores SET version = version + 1, last_active_at = unix_ms(),
  expires_at = unix_ms() + expires_days * {_DAY}
WHERE owner = $1 AND id = $2 AND (expires_at IS NULL OR expires_at > unix_ms()) RETURNING number
"""
BUMP = "UPDATE vector_stores SET version = version + 1 WHERE owner = $1 AND id = $2 RETURNING number"
# It is nobody's from now on.
DELETE_STORE = """
UPDATE vector_stores SET owner = NULL, name = NULL, description = NULL, metadata = '{}'
WHERE owner = $1 AND id = $2 RETURNING 1
"""

# $1 the store's number, in all of these: it is held. A file that is there already becomes another ingestion of itself:
# its number changes, and its batches keep it.
INSERT_FILES = """
INSERT INTO vector_files (store_number, file_id, filename, attributes, chunking, chunk_size, chunk_overlap)
SELECT $1, n.* FROM unnest($2::text[], $3::text[], $4::bytea[], $5::text[], $6::integer[], $7::integer[]) AS n
ON CONFLICT (store_number, file_id) DO UPDATE SET
  number = excluded.number, filename = excluded.filename, status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, words = 0, usage_bytes = 0,
  embedding_model = NULL, vector_width = NULL, claim = NULL, lease_until = NULL, attempts = 0
"""
DROP_ATTRIBUTES = """
DELETE FROM file_attributes WHERE file IN (
  SELECT id FROM vector_files WHERE store_number = $1 AND file_id = ANY($2::text[])
)
"""
# Of each attribute its file's id, key, kind, text and number.
INSERT_ATTRIBUTES = """
INSERT INTO file_attributes (file, store_number, key, kind, text, number)
SELECT f.id, $1, a.key, a.kind, a.text, a.number
FROM unnest($2::text[], $3::text[], $4::"char"[], $5::text[], $6::numeric[]) AS a (file_id, key, kind, text, number)
JOIN vector_files f ON f.store_number = $1 AND f.file_id = a.file_id
"""
INSERT_BATCH = "INSERT INTO vector_batches (id, store_number) VALUES ($2, $1)"
INSERT_BATCH_FILES = """
INSERT INTO vector_batch_files (batch_id, file)
SELECT $2, id FROM vector_files WHERE store_number = $1 AND file_id = ANY($3::text[])
"""
SET_ATTRIBUTES = """
UPDATE vector_files SET attributes = $3 WHERE store_number = $1 AND file_id = $2 RETURNING 1
"""
DELETE_FILE = "DELETE FROM vector_files WHERE store_number = $1 AND file_id = $2 RETURNING 1"
LOCK_STORE = "SELECT number FROM vector_stores WHERE owner = $1 AND id = $2 FOR NO KEY UPDATE"
# $1 the owner, $2 the file: stores are held in their order.
LOCK_STORES_OF_FILE = """
SELECT number FROM vector_stores s
WHERE owner = $1 AND EXISTS (SELECT 1 FROM vector_files f WHERE f.store_number = s.number AND f.file_id = $2)
ORDER BY number FOR NO KEY UPDATE
"""
DELETE_EVERYWHERE = "DELETE FROM vector_files WHERE store_number = ANY($1::bigint[]) AND file_id = $2"
BUMP_NUMBERS = "UPDATE vector_stores SET version = version + 1 WHERE number = ANY($1::bigint[])"

# $1 the owner, $2 the store's id.
_FILE = """
SELECT f.file_id, s.id AS store_id, f.filename, f.status, f.created_at, f.usage_bytes, f.chunking, f.chunk_size,
       f.chunk_overlap, f.attributes, f.error_code, f.error_message
FROM vector_stores s JOIN vector_files f ON f.store_number = s.number
WHERE s.owner = $1 AND s.id = $2
"""
GET_FILE = _FILE + "AND f.file_id = $3"
_CURSOR = """(f.created_at, f.file_id) {} (
    SELECT c.created_at, c.file_id FROM vector_files c WHERE c.store_number = s.number AND c.file_id = {}
  )"""
# $3 and $4: the cursors; $6 the state and $7 the batch, if only its files are asked for.
_FILE_PAGE = f"""
  AND ($6::text IS NULL OR f.status = $6)
  AND ($7::text IS NULL OR EXISTS (SELECT 1 FROM vector_batch_files m WHERE m.batch_id = $7 AND m.file = f.id))
  AND ($3::text IS NULL OR {_CURSOR.format(">", "$3")})
  AND ($4::text IS NULL OR {_CURSOR.format("<", "$4")})
ORDER BY f.created_at {{0}}, f.file_id {{0}} LIMIT $5
"""
FILES_FORWARD, FILES_BACKWARD = _FILE + _FILE_PAGE.format("ASC"), _FILE + _FILE_PAGE.format("DESC")
# Nothing, where there is no such file; one row with nothing in it where it has no chunks that can be read.
FILE_TEXT = """
SELECT c.text FROM vector_stores s JOIN vector_files f ON f.store_number = s.number
LEFT JOIN LATERAL (
  SELECT place, text FROM chunks
  WHERE file_number = f.number AND f.status = 'completed' AND place >= $4 ORDER BY place LIMIT $5
) AS c ON true
WHERE s.owner = $1 AND s.id = $2 AND f.file_id = $3 ORDER BY c.place
"""

GET_BATCH = """
SELECT b.id, s.id AS store_id, b.created_at, b.cancelled AS stopped,
       count(f.id) FILTER (WHERE f.status = 'in_progress') AS in_progress,
       count(f.id) FILTER (WHERE f.status = 'completed') AS completed,
       count(f.id) FILTER (WHERE f.status = 'failed') AS failed,
       count(f.id) FILTER (WHERE f.status = 'cancelled') AS cancelled
FROM vector_stores s JOIN vector_batches b ON b.store_number = s.number
LEFT JOIN vector_batch_files m ON m.batch_id = b.id LEFT JOIN vector_files f ON f.id = m.file
WHERE s.owner = $1 AND s.id = $2 AND b.id = $3
GROUP BY b.id, s.id
"""
CANCEL_BATCH = "UPDATE vector_batches SET cancelled = true WHERE store_number = $1 AND id = $2 RETURNING 1"
# A claim that is taken away: whoever makes the chunks finds out with the next thing it wants to write.
CANCEL_FILES = """
WITH cancelled AS (
  UPDATE vector_files SET status = 'cancelled', claim = NULL, lease_until = NULL, usage_bytes = 0
  WHERE status = 'in_progress' AND id IN (SELECT file FROM vector_batch_files WHERE batch_id = $2)
    AND store_number = $1 RETURNING number
)
INSERT INTO vector_trash SELECT number FROM cancelled ON CONFLICT DO NOTHING
"""
