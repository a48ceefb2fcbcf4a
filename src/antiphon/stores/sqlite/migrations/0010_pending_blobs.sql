-- Contents of files that are no file's: on their way in, or on their way out (engine/ports/files.py). `lease_until`, by
-- the clock of leases: above 0 until when an upload is believed to live; 0: taken, the content goes. The one row of
-- key '*' (-1) stands for what lies in the data folder from before this table; it goes when that was looked for once.
CREATE TABLE pending_blobs (
  key TEXT PRIMARY KEY,
  lease_until BIGINT NOT NULL
);
INSERT INTO pending_blobs (key, lease_until) VALUES ('*', -1);
