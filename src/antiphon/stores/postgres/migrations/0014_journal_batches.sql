-- serves: 4
-- Journal entries that a process under load stored together. `at`: milliseconds since the epoch, the time of storing.
-- `entries`: their number. `body`: the entries in MessagePack. A reader of the journal moves them into `requests`.
CREATE TABLE request_batches (
  id text NOT NULL PRIMARY KEY,
  at bigint NOT NULL,
  entries bigint NOT NULL,
  body bytea NOT NULL
);
-- PostgreSQL would compress each body. Most batches are deleted unread.
ALTER TABLE request_batches ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX request_batches_at ON request_batches (at, id, entries);
