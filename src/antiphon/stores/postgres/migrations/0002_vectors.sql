-- serves: 1
-- Vector stores, their files, their chunks with the words in them. Times are unix milliseconds by the database's clock,
-- by which stores expire too; leases are timestamps of it. Vectors have a table of their own, which needs an extension
-- (vector_migrations): words do without.

-- Stores and files take their numbers from here: none is given out again when what had it is gone.
CREATE SEQUENCE vector_numbers;
CREATE FUNCTION unix_ms() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT (extract(epoch FROM now()) * 1000)::bigint';

-- owner is null when the store was deleted: it is nobody's, so nothing finds it, and its files are cleared away in
-- pieces. version changes with the set of completed files.
CREATE TABLE vector_stores (
  number bigint NOT NULL PRIMARY KEY DEFAULT nextval('vector_numbers'),
  id text NOT NULL UNIQUE,
  owner text,
  name text,
  description text,
  metadata bytea NOT NULL,
  created_at bigint NOT NULL DEFAULT unix_ms(),
  last_active_at bigint NOT NULL DEFAULT unix_ms(),
  expires_days bigint,
  expires_at bigint,
  version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE INDEX vector_stores_list ON vector_stores (owner, number);
CREATE INDEX vector_stores_expiring ON vector_stores (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX vector_stores_deleted ON vector_stores (number) WHERE owner IS NULL;

-- number is the file number: of this ingestion of the file; it changes when the file is ingested anew. claim: who makes
-- its chunks, until lease_until; without a claim nobody takes the file up before that. words: of all its chunks.
-- There is no index on lease_until: renewing it must not move the row.
CREATE TABLE vector_files (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  number bigint NOT NULL UNIQUE DEFAULT nextval('vector_numbers'),
  store_number bigint NOT NULL REFERENCES vector_stores (number),
  file_id text NOT NULL,
  filename text NOT NULL,
  status text NOT NULL DEFAULT 'in_progress',
  error_code text,
  error_message text,
  attributes bytea NOT NULL,
  chunking text NOT NULL,
  chunk_size integer NOT NULL,
  chunk_overlap integer NOT NULL,
  chunks integer NOT NULL DEFAULT 0,
  words bigint NOT NULL DEFAULT 0,
  usage_bytes bigint NOT NULL DEFAULT 0,
  embedding_model text,
  vector_width integer,
  created_at bigint NOT NULL DEFAULT unix_ms(),
  claim text,
  lease_until timestamptz,
  attempts integer NOT NULL DEFAULT 0,
  UNIQUE (store_number, file_id)
) WITH (fillfactor = 70);
CREATE INDEX vector_files_list ON vector_files (store_number, created_at, file_id);
CREATE INDEX vector_files_status ON vector_files (store_number, status) INCLUDE (usage_bytes);
CREATE INDEX vector_files_waiting ON vector_files (number) WHERE status = 'in_progress';
CREATE INDEX vector_files_claim ON vector_files (claim) WHERE claim IS NOT NULL;
CREATE INDEX vector_files_file ON vector_files (file_id);

-- The attributes once more, as filters look for them. kind: s(tring) in text; n(umber) and b(oolean) in number.
CREATE TABLE file_attributes (
  file bigint NOT NULL REFERENCES vector_files (id) ON DELETE CASCADE,
  store_number bigint NOT NULL,
  key text NOT NULL,
  kind "char" NOT NULL,
  text text COLLATE "C",
  number numeric,
  PRIMARY KEY (file, key)
);
CREATE INDEX file_attributes_text ON file_attributes (store_number, key, text, file) WHERE kind = 's';
CREATE INDEX file_attributes_number ON file_attributes (store_number, key, kind, number, file) WHERE kind <> 's';

CREATE TABLE vector_batches (
  id text NOT NULL PRIMARY KEY,
  store_number bigint NOT NULL REFERENCES vector_stores (number) ON DELETE CASCADE,
  created_at bigint NOT NULL DEFAULT unix_ms(),
  cancelled boolean NOT NULL DEFAULT false
);
CREATE INDEX vector_batches_store ON vector_batches (store_number);
CREATE TABLE vector_batch_files (
  batch_id text NOT NULL REFERENCES vector_batches (id) ON DELETE CASCADE,
  file bigint NOT NULL REFERENCES vector_files (id) ON DELETE CASCADE,
  PRIMARY KEY (batch_id, file)
);
CREATE INDEX vector_batch_files_file ON vector_batch_files (file);

-- file_number is no foreign key: chunks of a number that no file has any more are cleared away in pieces. length: words.
-- words: each word of the chunk once, as "store word count" (vector_words.py): so the index alone knows how often a
-- store's chunks hold a word. Texts and words are kept outside of the row: ranking reads many rows, and none of them.
CREATE TABLE chunks (
  file_number bigint NOT NULL,
  place integer NOT NULL,
  tokens integer NOT NULL,
  length integer NOT NULL,
  words text[] NOT NULL,
  text text NOT NULL,
  PRIMARY KEY (file_number, place)
) WITH (toast_tuple_target = 128);
-- What waits to be sorted into the index is read by every search: little of it.
CREATE INDEX chunks_words ON chunks USING gin (words) WITH (gin_pending_list_limit = 64);

-- File numbers whose chunks are to be cleared away.
CREATE TABLE vector_trash (
  file_number bigint NOT NULL PRIMARY KEY
);

-- A file goes in many ways; its chunks always follow.
CREATE FUNCTION vector_file_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO vector_trash VALUES (OLD.number) ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE TRIGGER vector_file_gone AFTER DELETE ON vector_files
  FOR EACH ROW EXECUTE FUNCTION vector_file_gone();
CREATE TRIGGER vector_file_numbered_anew AFTER UPDATE OF number ON vector_files
  FOR EACH ROW WHEN (OLD.number <> NEW.number) EXECUTE FUNCTION vector_file_gone();
