-- serves: 4
-- A rotation shortens a key's lifetime. This column keeps the lifetime from before the first rotation, in milliseconds.
-- 0: the key was to live without end. Null: no rotation has shortened the key.
ALTER TABLE client_keys ADD COLUMN lifetime bigint;
