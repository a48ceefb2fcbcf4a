-- serves: 1
-- What several machines compare is by the database's clock; created_at and expires_at are what clients see, by the clock
-- of whichever machine it was. What older builds store has the defaults.

-- When the response was stored, in unix milliseconds: its events are kept from then on. What is there begins anew.
ALTER TABLE responses ADD COLUMN stored_at bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint;

-- When the job was queued: for how long one waits for a process that is able to run it.
ALTER TABLE jobs ADD COLUMN queued_at timestamptz NOT NULL DEFAULT now();

-- When the file's time is over, in unix milliseconds. Null: as expires_at says.
ALTER TABLE files ADD COLUMN gone_at bigint;
CREATE INDEX files_gone ON files (coalesce(gone_at, expires_at)) WHERE expires_at IS NOT NULL;
