-- serves: 1
-- Responses, conversations, prompts, background work, files, keys of requests, usage.
-- Times of things are unix milliseconds, as clients see them; leases are by the database's clock. Bodies are the JSON
-- bytes exactly as the core made them. Every table's name is what SQLite's is called.

-- One row per previous_response_id tree: the unit of expiry, so that no chain is ever cut in its middle. Its row is
-- locked before anything of the tree is added or deleted.
-- UNIQUE (id, owner) is there to be referenced: it makes "a chain never crosses owners" a rule of the database.
CREATE TABLE chains (
  id text NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  updated_at bigint NOT NULL,
  expires_at bigint,
  UNIQUE (id, owner)
) WITH (fillfactor = 80);
CREATE INDEX chains_updated ON chains (updated_at);

-- prev_id is no foreign key: when an ancestor is deleted the chain must be seen to dangle, not to end.
-- history_items and history_bytes are of the whole chain up to and including this response (one without items counts
-- as one), own_bytes of its body and its own items: sizes are known before any of it is read.
-- background: 0 no, 1 yes, 2 its events were cleared away. conversation_pos is where its own items begin there.
CREATE TABLE responses (
  number bigint GENERATED ALWAYS AS IDENTITY,
  id text NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  chain_id text NOT NULL,
  prev_id text,
  history_items bigint NOT NULL CHECK (history_items > 0),
  history_bytes bigint NOT NULL,
  own_bytes bigint NOT NULL,
  status text NOT NULL,
  model text NOT NULL,
  created_at bigint NOT NULL,
  completed_at bigint,
  input_tokens bigint,
  output_tokens bigint,
  conversation_id text,
  conversation_pos bigint,
  background smallint NOT NULL DEFAULT 0,
  body bytea NOT NULL,
  FOREIGN KEY (chain_id, owner) REFERENCES chains (id, owner) ON DELETE CASCADE
);
CREATE INDEX responses_chain ON responses (chain_id, owner);
CREATE INDEX responses_list ON responses (owner, created_at, number);
CREATE INDEX responses_background ON responses (created_at) WHERE background = 1;

-- Items inherit their owner from their response: every look-up by item id joins to it.
-- dir: 0 = input given with this request, 1 = output. shown: what the model was shown beyond what the item says.
CREATE TABLE response_items (
  response_id text NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
  dir smallint NOT NULL CHECK (dir IN (0, 1)),
  seq integer NOT NULL CHECK (seq >= 0),
  item_id text NOT NULL,
  type text NOT NULL,
  body bytea NOT NULL,
  shown bytea,
  PRIMARY KEY (response_id, dir, seq)
);
CREATE INDEX response_items_by_id ON response_items (item_id, dir);

-- locked_by is the response that runs on the conversation, locked_until when that is over unless renewed.
-- Places of items begin at first_pos, which no earlier conversation of the same id has reached: each has 2^24 places.
CREATE SEQUENCE conversation_places;
CREATE TABLE conversations (
  owner text NOT NULL,
  id text NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  first_pos bigint NOT NULL,
  next_pos bigint NOT NULL,
  bytes bigint NOT NULL DEFAULT 0,
  metadata bytea NOT NULL,
  locked_by text,
  locked_until timestamptz,
  PRIMARY KEY (owner, id),
  CHECK (next_pos - first_pos <= 16777216)
) WITH (fillfactor = 80);
CREATE INDEX conversations_list ON conversations (owner, created_at, id);
CREATE INDEX conversations_locks ON conversations (locked_by) WHERE locked_by IS NOT NULL;
CREATE INDEX conversations_updated ON conversations (updated_at);

-- response_id is the response that brought or made the item; null when a client added it.
CREATE TABLE conversation_items (
  number bigint GENERATED ALWAYS AS IDENTITY,
  owner text NOT NULL,
  conversation_id text NOT NULL,
  pos bigint NOT NULL,
  item_id text NOT NULL,
  type text NOT NULL,
  response_id text,
  body bytea NOT NULL,
  shown bytea,
  PRIMARY KEY (owner, conversation_id, pos),
  UNIQUE (owner, conversation_id, item_id),
  FOREIGN KEY (owner, conversation_id) REFERENCES conversations (owner, id) ON DELETE CASCADE
);
CREATE INDEX conversation_items_by_id ON conversation_items (item_id, owner);

CREATE TABLE prompts (
  id text NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  name text,
  default_version integer NOT NULL,
  last_version integer NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  metadata bytea NOT NULL
);
CREATE INDEX prompts_list ON prompts (owner, created_at, id);
CREATE TABLE prompt_versions (
  prompt_id text NOT NULL REFERENCES prompts (id) ON DELETE CASCADE,
  version integer NOT NULL,
  created_at bigint NOT NULL,
  body bytea NOT NULL,
  PRIMARY KEY (prompt_id, version)
);

-- Work that is not finished: one row for each background response that is queued or running.
-- turn: an owner's jobs have rising numbers, and whoever comes later begins where the others stand, so that one
-- owner's many let another's few go before. claim counts the claims and never goes back (attempts does, when a job is
-- given back); last_seq is the last event of its stream. needs: what a process must be able to do to run it.
-- There is no index on lease_until: renewing it must not move the row.
CREATE TABLE jobs (
  number bigint GENERATED ALWAYS AS IDENTITY,
  response_id text NOT NULL PRIMARY KEY REFERENCES responses (id) ON DELETE CASCADE,
  owner text NOT NULL,
  request bytea NOT NULL,
  needs text[] NOT NULL DEFAULT '{}',
  created_at bigint NOT NULL,
  turn bigint NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  claim integer NOT NULL DEFAULT 0,
  last_seq bigint NOT NULL DEFAULT -1,
  worker text,
  lease_until timestamptz,
  not_before timestamptz,
  -- Another process follows the stream until then, and wants to be told that it went on.
  watched_until timestamptz
) WITH (fillfactor = 70);
CREATE INDEX jobs_waiting ON jobs (turn, number) WHERE worker IS NULL;
CREATE INDEX jobs_held ON jobs (worker, response_id) WHERE worker IS NOT NULL;
CREATE INDEX jobs_owner ON jobs (owner);

-- What an owner has in the queue: jobs counts them, turn is the last one's. The row is locked before a job is added.
CREATE TABLE owner_queue (
  owner text NOT NULL PRIMARY KEY,
  jobs integer NOT NULL DEFAULT 0,
  turn bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- The stream of a background response, in pieces of whole events; last_seq is the last event's sequence_number.
-- claim: of the attempt that wrote it. 0: written when the response was queued, true of every attempt.
CREATE TABLE response_events (
  response_id text NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
  last_seq bigint NOT NULL,
  claim integer NOT NULL DEFAULT 0,
  data bytea NOT NULL,
  PRIMARY KEY (response_id, last_seq)
);

-- Files that clients uploaded. Their contents are outside of the database, each under the key blob.
CREATE TABLE files (
  owner text NOT NULL,
  id text NOT NULL,
  blob text NOT NULL UNIQUE,
  name text NOT NULL,
  purpose text NOT NULL,
  media_type text NOT NULL,
  size bigint NOT NULL,
  sha256 text NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint,
  PRIMARY KEY (owner, id)
);
CREATE INDEX files_list ON files (owner, created_at, id) INCLUDE (size);
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

-- Contents that are no file's: on their way in, or on their way out (engine/ports/files.py). lease_until: until when an
-- upload is believed to live; -infinity: taken, the content goes.
CREATE TABLE pending_blobs (
  key text NOT NULL PRIMARY KEY,
  lease_until timestamptz NOT NULL
);
CREATE INDEX pending_blobs_taken ON pending_blobs (key) WHERE lease_until = '-infinity';

-- What an owner's files take; the row is locked before a file is added.
CREATE TABLE owner_files (
  owner text NOT NULL PRIMARY KEY,
  bytes bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- What an owner's responses, items and conversations take: the sum of its rows. There are several, one for each
-- connection that writes, so that an owner's turns do not wait for one row.
CREATE TABLE owner_bytes (
  owner text NOT NULL,
  slot smallint NOT NULL,
  bytes bigint NOT NULL,
  PRIMARY KEY (owner, slot)
) WITH (fillfactor = 70);

-- What clients made with an `Idempotency-Key`. Until object_id is stored the key is held by a lease; then lease_until is
-- null, and expires_at says how long it is remembered.
CREATE TABLE idempotency (
  owner text NOT NULL,
  key text NOT NULL,
  fingerprint text NOT NULL,
  object_id text NOT NULL,
  lease_until timestamptz,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);
CREATE INDEX idempotency_object ON idempotency (object_id);

-- When each kind of clearing up is due again: of all processes one does it. No row: now.
CREATE TABLE sweeps (
  what text NOT NULL PRIMARY KEY,
  due_at timestamptz NOT NULL
);

-- What model calls took, by day (UTC), owner, model and upstream; estimated_*: of calls whose upstream did not say,
-- which are not among the others. cost is in millionths of the currency of that time.
CREATE TABLE usage_days (
  day text NOT NULL,
  owner text NOT NULL,
  model text NOT NULL,
  upstream text NOT NULL,
  calls bigint NOT NULL,
  input_tokens bigint NOT NULL,
  cached_tokens bigint NOT NULL,
  output_tokens bigint NOT NULL,
  reasoning_tokens bigint NOT NULL,
  estimated_calls bigint NOT NULL,
  estimated_input_tokens bigint NOT NULL,
  estimated_output_tokens bigint NOT NULL,
  cost bigint NOT NULL,
  PRIMARY KEY (day, owner, model, upstream)
) WITH (fillfactor = 80);
CREATE INDEX usage_days_owner ON usage_days (owner);

-- What all processes of a deployment must have in common: fingerprints of their keys.
CREATE TABLE deployment (
  name text NOT NULL PRIMARY KEY,
  value text NOT NULL
);

-- Rows go in many ways (one by one, with their chain or conversation, by age, by an operator), so the database counts:
-- once per statement, in the slot of its connection, owners in their order.
CREATE FUNCTION count_bytes(owners text[], changes bigint[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO owner_bytes AS b (owner, slot, bytes)
  SELECT owner, (pg_backend_pid() % 16)::smallint, sum(change)
  FROM unnest(owners, changes) AS c (owner, change) GROUP BY owner HAVING sum(change) <> 0 ORDER BY owner
  ON CONFLICT (owner, slot) DO UPDATE SET bytes = b.bytes + excluded.bytes
$$;
CREATE FUNCTION responses_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(owner), array_agg(own_bytes)) FROM added;
  RETURN NULL;
END $$;
CREATE FUNCTION responses_recounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(owner), array_agg(bytes)) FROM (
    SELECT owner, own_bytes AS bytes FROM added UNION ALL SELECT owner, -own_bytes FROM removed
  ) AS both_sides;
  RETURN NULL;
END $$;
CREATE FUNCTION responses_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(owner), array_agg(-own_bytes)) FROM removed;
  RETURN NULL;
END $$;
CREATE TRIGGER responses_counted AFTER INSERT ON responses REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION responses_counted();
CREATE TRIGGER responses_recounted AFTER UPDATE ON responses REFERENCING NEW TABLE AS added OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION responses_recounted();
CREATE TRIGGER responses_uncounted AFTER DELETE ON responses REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION responses_uncounted();

CREATE FUNCTION conversation_items_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE conversations c SET bytes = c.bytes + n.bytes FROM (
    SELECT owner, conversation_id, sum(length(body) + coalesce(length(shown), 0)) AS bytes
    FROM added GROUP BY owner, conversation_id
  ) AS n WHERE c.owner = n.owner AND c.id = n.conversation_id;
  PERFORM count_bytes(array_agg(owner), array_agg((length(body) + coalesce(length(shown), 0))::bigint)) FROM added;
  RETURN NULL;
END $$;
CREATE FUNCTION conversation_items_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE conversations c SET bytes = c.bytes - n.bytes FROM (
    SELECT owner, conversation_id, sum(length(body) + coalesce(length(shown), 0)) AS bytes
    FROM removed GROUP BY owner, conversation_id
  ) AS n WHERE c.owner = n.owner AND c.id = n.conversation_id;
  PERFORM count_bytes(array_agg(owner), array_agg(-(length(body) + coalesce(length(shown), 0))::bigint)) FROM removed;
  RETURN NULL;
END $$;
CREATE TRIGGER conversation_items_counted AFTER INSERT ON conversation_items REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION conversation_items_counted();
CREATE TRIGGER conversation_items_uncounted AFTER DELETE ON conversation_items REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION conversation_items_uncounted();

-- A job goes in one way only, but with its response in many.
CREATE FUNCTION jobs_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE owner_queue q SET jobs = q.jobs - n.jobs FROM (
    SELECT owner, count(*) AS jobs FROM removed GROUP BY owner ORDER BY owner
  ) AS n WHERE q.owner = n.owner;
  RETURN NULL;
END $$;
CREATE TRIGGER jobs_uncounted AFTER DELETE ON jobs REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION jobs_uncounted();

-- Files go in many ways. 4096: what one takes at least (stores/kept_files.py).
CREATE FUNCTION files_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE owner_files o SET bytes = o.bytes - n.bytes FROM (
    SELECT owner, sum(greatest(size, 4096)) AS bytes FROM removed GROUP BY owner ORDER BY owner
  ) AS n WHERE o.owner = n.owner;
  RETURN NULL;
END $$;
CREATE TRIGGER files_uncounted AFTER DELETE ON files REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION files_uncounted();
