-- serves: 5
-- As in migrations/0013_claimed_calls.sql; nothing is claimed here.
ALTER TABLE idempotency ADD COLUMN record BLOB;
