-- serves: 12
-- The client keys that an operator creates at run time. `digest`: the SHA-256 of a token. `models` and `tools`: JSON
-- lists of globs; an empty list allows everything. Times are milliseconds since the epoch.
CREATE TABLE client_keys (
  id TEXT NOT NULL PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  name TEXT NOT NULL,
  owner TEXT NOT NULL,
  team TEXT NOT NULL,
  prefix TEXT NOT NULL,
  models TEXT NOT NULL,
  tools TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  revoked_at BIGINT
);
CREATE INDEX client_keys_owner ON client_keys (owner);
-- One row: the number of changes so far.
CREATE TABLE client_key_changes (
  id INTEGER NOT NULL PRIMARY KEY,
  number BIGINT NOT NULL
);
