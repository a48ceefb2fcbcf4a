-- vectors.db: vector stores, their files, their chunks. Times are milliseconds since the epoch.
-- Beside these tables each store has a full-text index of its own, `fts_<id>`: word statistics are then the store's
-- alone, and deleting a store deletes its index at once.

CREATE TABLE vector_stores (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  owner TEXT NOT NULL,
  name TEXT,
  description TEXT,
  metadata BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  last_active_at INTEGER NOT NULL,
  expires_days INTEGER,
  expires_at INTEGER,
  version INTEGER NOT NULL DEFAULT 0 -- changes with the set of completed files: caches of vectors compare it
) STRICT;
CREATE INDEX vector_stores_list ON vector_stores (owner, no);
CREATE INDEX vector_stores_expiring ON vector_stores (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE vector_files (
  no INTEGER PRIMARY KEY, -- the file number; from file_numbers, never used twice
  store_no INTEGER NOT NULL REFERENCES vector_stores (no) ON DELETE CASCADE,
  file_id TEXT NOT NULL,
  filename TEXT NOT NULL,
  title TEXT NOT NULL DEFAULT '', -- what its chunks have as title in the index
  status TEXT NOT NULL,
  error_code TEXT,
  error_message TEXT,
  attributes BLOB NOT NULL,
  chunking TEXT NOT NULL,
  chunk_size INTEGER NOT NULL,
  chunk_overlap INTEGER NOT NULL,
  chunks INTEGER NOT NULL DEFAULT 0,
  usage_bytes INTEGER NOT NULL DEFAULT 0,
  embedding_model TEXT,
  created_at INTEGER NOT NULL,
  claim TEXT, -- who makes its chunks
  lease_until INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  UNIQUE (store_no, file_id)
) STRICT;
CREATE INDEX vector_files_list ON vector_files (store_no, created_at, file_id);
CREATE INDEX vector_files_status ON vector_files (store_no, status, usage_bytes);
CREATE INDEX vector_files_waiting ON vector_files (lease_until) WHERE status = 'in_progress';
CREATE INDEX vector_files_claim ON vector_files (claim) WHERE claim IS NOT NULL;
CREATE INDEX vector_files_file ON vector_files (file_id);

CREATE TABLE file_numbers (last INTEGER NOT NULL) STRICT;
INSERT INTO file_numbers (last) VALUES (0);

-- The attributes once more, as filters look for them. kind: s(tring), n(umber), b(oolean).
CREATE TABLE file_attributes (
  store_no INTEGER NOT NULL,
  key TEXT NOT NULL,
  kind TEXT NOT NULL,
  value ANY NOT NULL,
  file_no INTEGER NOT NULL REFERENCES vector_files (no) ON DELETE CASCADE ON UPDATE CASCADE,
  PRIMARY KEY (store_no, key, kind, value, file_no)
) STRICT, WITHOUT ROWID;
CREATE INDEX file_attributes_file ON file_attributes (file_no);

CREATE TABLE vector_batches (
  id TEXT PRIMARY KEY,
  store_no INTEGER NOT NULL REFERENCES vector_stores (no) ON DELETE CASCADE,
  created_at INTEGER NOT NULL,
  cancelled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX vector_batches_store ON vector_batches (store_no);

CREATE TABLE vector_batch_files (
  batch_id TEXT NOT NULL REFERENCES vector_batches (id) ON DELETE CASCADE,
  file_no INTEGER NOT NULL REFERENCES vector_files (no) ON DELETE CASCADE ON UPDATE CASCADE,
  PRIMARY KEY (batch_id, file_no)
) STRICT, WITHOUT ROWID;
CREATE INDEX vector_batch_files_file ON vector_batch_files (file_no);

-- id = file number << 20 | place in the file: whose a chunk is needs no column, and a file's chunks lie together.
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY,
  tokens INTEGER NOT NULL,
  vector BLOB, -- before the text, so that reading vectors reads no texts
  text TEXT NOT NULL
) STRICT;

-- File numbers whose chunks are to be cleared away. store_id: whose index holds their words; NULL when it is gone.
CREATE TABLE vector_trash (
  file_no INTEGER PRIMARY KEY,
  store_id TEXT,
  title TEXT NOT NULL
) STRICT;
