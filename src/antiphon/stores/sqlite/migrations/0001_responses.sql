-- Responses, their items, and the chains they form.
-- Times are unix milliseconds. Bodies are the JSON bytes exactly as the core made them.

-- One row per previous_response_id tree: the unit of expiry, so that no chain is ever cut in its middle.
-- UNIQUE (id, owner) is there to be referenced: it makes "a chain never crosses owners" a rule of the database.
CREATE TABLE chains (
  id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  updated_at BIGINT NOT NULL,
  expires_at BIGINT,
  UNIQUE (id, owner)
);
CREATE INDEX chains_expiry ON chains (expires_at) WHERE expires_at IS NOT NULL;

-- prev_id is no foreign key: when an ancestor is deleted the chain must be seen to dangle, not to end.
-- history_items counts the items of the whole chain up to and including this response (a response without items
-- counts as one), so that a chain's size is known before any of it is read.
CREATE TABLE responses (
  id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  chain_id TEXT NOT NULL,
  prev_id TEXT,
  history_items BIGINT NOT NULL CHECK (history_items > 0),
  status TEXT NOT NULL,
  model TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  completed_at BIGINT,
  input_tokens BIGINT,
  output_tokens BIGINT,
  body BLOB NOT NULL,
  FOREIGN KEY (chain_id, owner) REFERENCES chains (id, owner) ON DELETE CASCADE
);
CREATE INDEX responses_chain ON responses (chain_id, owner);

-- Items inherit their owner from their response: every look-up by item id joins to it.
CREATE TABLE response_items (
  response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
  dir INTEGER NOT NULL CHECK (dir IN (0, 1)),  -- 0 = input given with this request, 1 = output
  seq INTEGER NOT NULL CHECK (seq >= 0),
  item_id TEXT NOT NULL,
  type TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (response_id, dir, seq)
);
CREATE INDEX response_items_by_id ON response_items (item_id, dir);
