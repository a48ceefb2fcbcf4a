"""The SQL of vector stores, their files and batches, by name.

Lives here: statements. Not here: who runs them (`vector_stores.py`, `ingestion.py`), chunks and searching
(`ingestion.py`, `chunk_index.py`).

Invariant: a statement on behalf of a client names the owner, or follows one in its unit that does and must find a row.
"""

from __future__ import annotations

INDEX_TABLE = """
CREATE VIRTUAL TABLE {table} USING fts5(
  title, text, content='', columnsize=1, tokenize="porter unicode61 remove_diacritics 2"
)
"""
# BM25 takes a word that most documents have for one that says nothing. In a store of three chunks that is every word,
# and all scores would be nothing. So each index begins with some documents that no search finds: their numbers belong
# to no file. In a store of hundreds of chunks they make no difference.
INSERT_PADDING = "INSERT INTO {table} (rowid, title, text) VALUES (?, '', ?)"
PADDING = [(-number, "zzpadding " * 100) for number in range(1, 17)]
DELETE_ALL = "INSERT INTO {table} ({table}) VALUES ('delete-all')"
DROP_INDEX = "DROP TABLE IF EXISTS {table}"

INSERT_STORE = """
INSERT INTO vector_stores (no, id, owner, name, description, metadata, created_at, last_active_at, expires_days,
                           expires_at)
SELECT last, :id, :owner, :name, :description, :metadata, :at, :at, :days, :at + :days * 86400000 FROM file_numbers
"""
_COUNT = "ifnull((SELECT count(*) FROM vector_files f WHERE f.store_no = s.no AND f.status = '{0}'), 0) AS {0}"
_STORE = f"""
SELECT s.id, s.created_at, s.last_active_at, s.name, s.description, s.metadata, s.expires_days, s.expires_at,
       ifnull((SELECT sum(usage_bytes) FROM vector_files f WHERE f.store_no = s.no), 0) AS usage_bytes,
       {_COUNT.format("in_progress")}, {_COUNT.format("completed")}, {_COUNT.format("failed")},
       {_COUNT.format("cancelled")}, s.no
FROM vector_stores s
"""
GET_STORE = _STORE + "WHERE s.id = :id AND s.owner = :owner"
_PAGE = """
WHERE s.owner = :owner
  AND (:low IS NULL OR s.no > (SELECT no FROM vector_stores WHERE id = :low AND owner = :owner))
  AND (:high IS NULL OR s.no < (SELECT no FROM vector_stores WHERE id = :high AND owner = :owner))
ORDER BY s.no {} LIMIT :limit
"""
STORES_FORWARD, STORES_BACKWARD = _STORE + _PAGE.format("ASC"), _STORE + _PAGE.format("DESC")
UPDATE_STORE = """
UPDATE vector_stores SET
  name = iif(:new_name, :name, name), metadata = ifnull(:metadata, metadata),
  expires_days = iif(:clear, NULL, ifnull(:days, expires_days)),
  last_active_at = :at,
  expires_at = :at + iif(:clear, NULL, ifnull(:days, expires_days)) * 86400000
WHERE id = :id AND owner = :owner
"""
TOUCH_STORES = """
UPDATE vector_stores SET last_active_at = :at, expires_at = :at + expires_days * 86400000
WHERE id IN (SELECT value FROM json_each(:ids)) AND owner = :owner AND (expires_at IS NULL OR expires_at > :at)
"""
# In every unit that changes which files are completed.
BUMP = "UPDATE vector_stores SET version = version + 1 WHERE {which}"
TRASH_FILES = """
INSERT OR IGNORE INTO vector_trash (file_no, store_id, title)
SELECT f.no, {whose}, f.title FROM vector_files f JOIN vector_stores s ON s.no = f.store_no WHERE {which}
"""
ORPHAN_TRASH = "UPDATE vector_trash SET store_id = NULL WHERE store_id = :id"
DELETE_STORE = "DELETE FROM vector_stores WHERE id = :id AND owner = :owner"

# Stores take their numbers from the same counter as files: none is given out again when what had it is deleted.
# A file that is there already becomes another ingestion of itself: its number changes, and its batches keep it.
NEW_NUMBER = "UPDATE file_numbers SET last = last + 1"
INSERT_FILE = """
INSERT INTO vector_files (no, store_no, file_id, filename, status, attributes, chunking, chunk_size, chunk_overlap,
                          created_at)
SELECT (SELECT last FROM file_numbers), no, :file_id, :filename, 'in_progress', :attributes, :chunking, :size, :overlap,
       :at
FROM vector_stores WHERE id = :id AND owner = :owner
ON CONFLICT (store_no, file_id) DO UPDATE SET
  no = excluded.no, filename = excluded.filename, title = '', status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, usage_bytes = 0,
  embedding_model = NULL, claim = NULL, lease_until = 0, attempts = 0
"""
INSERT_ATTRIBUTE = """
INSERT INTO file_attributes (store_no, key, kind, value, file_no)
SELECT f.store_no, :key, :kind, :value, f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
"""
DROP_ATTRIBUTES = """
DELETE FROM file_attributes WHERE file_no IN (
  SELECT f.no FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
  WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id
)
"""
SET_ATTRIBUTES = """
UPDATE vector_files SET attributes = :attributes
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_FILE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
DELETE_EVERYWHERE = """
DELETE FROM vector_files
WHERE file_id = :file_id AND store_no IN (SELECT no FROM vector_stores WHERE owner = :owner)
"""
INSERT_BATCH = """
INSERT INTO vector_batches (id, store_no, created_at)
SELECT :batch_id, no, :at FROM vector_stores WHERE id = :id AND owner = :owner
"""
INSERT_BATCH_FILE = (
    "INSERT OR IGNORE INTO vector_batch_files (batch_id, file_no) SELECT :batch_id, last FROM file_numbers"
)

_FILE = """
SELECT f.file_id, s.id AS store_id, f.filename, f.status, f.created_at, f.usage_bytes, f.chunking, f.chunk_size,
       f.chunk_overlap, f.attributes, f.error_code, f.error_message, f.no, f.chunks
FROM vector_stores s JOIN vector_files f ON f.store_no = s.no
"""
GET_FILE = _FILE + "WHERE s.id = :id AND s.owner = :owner AND f.file_id = :file_id"
_CURSOR = """(f.created_at, f.file_id) {} (
    SELECT c.created_at, c.file_id FROM vector_files c WHERE c.store_no = s.no AND c.file_id = :{}
  )"""
_FILE_PAGE = f"""
WHERE s.id = :id AND s.owner = :owner AND (:state IS NULL OR f.status = :state)
  AND (:batch_id IS NULL OR f.no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id))
  AND (:low IS NULL OR {_CURSOR.format(">", "low")})
  AND (:high IS NULL OR {_CURSOR.format("<", "high")})
ORDER BY f.created_at {{0}}, f.file_id {{0}} LIMIT :limit
"""
FILES_FORWARD, FILES_BACKWARD = _FILE + _FILE_PAGE.format("ASC"), _FILE + _FILE_PAGE.format("DESC")

GET_BATCH = """
SELECT b.id, s.id AS store_id, b.created_at, b.cancelled AS stopped,
       count(f.no) FILTER (WHERE f.status = 'in_progress') AS in_progress,
       count(f.no) FILTER (WHERE f.status = 'completed') AS completed,
       count(f.no) FILTER (WHERE f.status = 'failed') AS failed,
       count(f.no) FILTER (WHERE f.status = 'cancelled') AS cancelled
FROM vector_batches b JOIN vector_stores s ON s.no = b.store_no
LEFT JOIN vector_batch_files m ON m.batch_id = b.id LEFT JOIN vector_files f ON f.no = m.file_no
WHERE b.id = :batch_id AND s.id = :id AND s.owner = :owner
GROUP BY b.id
"""
CANCEL_BATCH = """
UPDATE vector_batches SET cancelled = 1
WHERE id = :batch_id AND store_no = (SELECT no FROM vector_stores WHERE id = :id AND owner = :owner)
"""
# A claim that is taken away: whoever makes the chunks finds out with the next thing it wants to write.
CANCEL_FILES = """
UPDATE vector_files SET status = 'cancelled', claim = NULL, usage_bytes = 0
WHERE status = 'in_progress' AND no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id)
"""
FILE_TEXT = "SELECT text FROM chunks WHERE id >= :first AND id < :end ORDER BY id LIMIT :limit"
