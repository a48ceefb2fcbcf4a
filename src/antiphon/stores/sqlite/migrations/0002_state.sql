-- Conversations, prompts, background work, and what is needed to list and expire.
-- Times are unix milliseconds. Bodies are JSON bytes exactly as the core made them.

-- A response that runs in the background has its row from the start; all others get it when they end.
-- `conversation_pos` is where the response's own items begin in its conversation: what is before them is its history.
ALTER TABLE responses ADD COLUMN conversation_id TEXT;
ALTER TABLE responses ADD COLUMN conversation_pos BIGINT;
ALTER TABLE responses ADD COLUMN background INTEGER NOT NULL DEFAULT 0;
-- Of the same moment, the one that was stored later is newer.
CREATE INDEX responses_list ON responses (owner, created_at);
CREATE INDEX responses_background ON responses (created_at) WHERE background = 1;
CREATE INDEX chains_updated ON chains (updated_at);

-- Work that is not finished: one row for each background response that is queued or running.
-- `request` is all a worker needs to run it. A worker holds a job until `lease_until` and renews that while it lives.
CREATE TABLE jobs (
  response_id TEXT NOT NULL PRIMARY KEY REFERENCES responses (id) ON DELETE CASCADE,
  owner TEXT NOT NULL,
  request BLOB NOT NULL,
  created_at BIGINT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  worker TEXT,
  lease_until BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX jobs_claim ON jobs (lease_until, created_at, owner, response_id);
CREATE INDEX jobs_owner ON jobs (owner, worker);
CREATE INDEX jobs_worker ON jobs (worker, response_id) WHERE worker IS NOT NULL;

-- The stream of a background response, in pieces of whole events; `last_seq` is the last event's sequence_number.
CREATE TABLE response_events (
  response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
  last_seq BIGINT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (response_id, last_seq)
);

-- `locked_by` is the response that runs on the conversation; the lock is over at `locked_until`, unless renewed.
-- The owner is part of the key: where clients may choose ids, one owner's choice must not be seen by another.
CREATE TABLE conversations (
  owner TEXT NOT NULL,
  id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  next_pos BIGINT NOT NULL DEFAULT 0,
  metadata BLOB NOT NULL,
  locked_by TEXT,
  locked_until BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (owner, id)
);
CREATE INDEX conversations_list ON conversations (owner, created_at, id);
CREATE INDEX conversations_locks ON conversations (locked_by) WHERE locked_by IS NOT NULL;
CREATE INDEX conversations_updated ON conversations (updated_at);

-- `response_id` is the response that brought or made the item; null when a client added it.
CREATE TABLE conversation_items (
  owner TEXT NOT NULL,
  conversation_id TEXT NOT NULL,
  pos BIGINT NOT NULL,
  item_id TEXT NOT NULL,
  type TEXT NOT NULL,
  response_id TEXT,
  body BLOB NOT NULL,
  PRIMARY KEY (owner, conversation_id, pos),
  UNIQUE (owner, conversation_id, item_id),
  FOREIGN KEY (owner, conversation_id) REFERENCES conversations (owner, id) ON DELETE CASCADE
);
CREATE INDEX conversation_items_by_id ON conversation_items (item_id, owner);

CREATE TABLE prompts (
  id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  name TEXT,
  default_version INTEGER NOT NULL,
  last_version INTEGER NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  metadata BLOB NOT NULL
);
CREATE INDEX prompts_list ON prompts (owner, created_at, id);
CREATE TABLE prompt_versions (
  prompt_id TEXT NOT NULL REFERENCES prompts (id) ON DELETE CASCADE,
  version INTEGER NOT NULL,
  created_at BIGINT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (prompt_id, version)
);
