-- What clients made here with an `Idempotency-Key`, as in migrations/0007_idempotency.sql. Everything is made at once, so no
-- key is held by a lease.
CREATE TABLE idempotency (
  owner TEXT NOT NULL,
  key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  object_id TEXT NOT NULL,
  lease_until INTEGER,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (owner, key)
) STRICT;
CREATE INDEX idempotency_expiry ON idempotency (expires_at);
