-- serves: 21
-- Journal entries that a process under load stored together. `at`: milliseconds since the epoch, the time of storing.
-- `entries`: their number. `body`: the entries in MessagePack. A reader of the journal moves them into `requests`.
CREATE TABLE request_batches (
  id TEXT NOT NULL PRIMARY KEY,
  at BIGINT NOT NULL,
  entries BIGINT NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX request_batches_at ON request_batches (at, id, entries);
