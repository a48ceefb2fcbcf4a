-- What clients made with an `Idempotency-Key`: a request that comes again gets what the first one made.
-- Until `object_id` is stored the key is held by a lease (`lease_until`, by the clock of leases); then `expires_at` (unix
-- milliseconds) says how long it is remembered, and `lease_until` is null.
CREATE TABLE idempotency (
  owner TEXT NOT NULL,
  key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  object_id TEXT NOT NULL,
  lease_until BIGINT,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);
CREATE INDEX idempotency_object ON idempotency (object_id);
