-- serves: 4
-- The client keys that an operator creates at run time. `digest`: the SHA-256 of a token. `models` and `tools`: JSON
-- lists of globs; an empty list allows everything. Times are milliseconds since the epoch.
CREATE TABLE client_keys (
  id text NOT NULL PRIMARY KEY,
  digest bytea NOT NULL UNIQUE,
  name text NOT NULL,
  owner text NOT NULL,
  team text NOT NULL,
  prefix text NOT NULL,
  models text NOT NULL,
  tools text NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint,
  revoked_at bigint
);
CREATE INDEX client_keys_owner ON client_keys (owner);
-- One row: the number of changes so far.
CREATE TABLE client_key_changes (
  id integer NOT NULL PRIMARY KEY,
  number bigint NOT NULL
);
