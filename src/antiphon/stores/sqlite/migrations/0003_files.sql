-- Files that clients uploaded. Their contents are outside of the database, each under the key `blob`.
-- Times are unix milliseconds.
CREATE TABLE files (
  owner TEXT NOT NULL,
  id TEXT NOT NULL,
  blob TEXT NOT NULL,
  name TEXT NOT NULL,
  purpose TEXT NOT NULL,
  media_type TEXT NOT NULL,
  size BIGINT NOT NULL,
  sha256 TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  PRIMARY KEY (owner, id)
);
CREATE UNIQUE INDEX files_blob ON files (blob);
-- Holds all that a list's order and an owner's total need.
CREATE INDEX files_list ON files (owner, created_at, id, size);
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
