-- serves: 1
-- Containers in which code runs. One row each, few of them; held_by is one use of it, held_until when that is over
-- unless renewed. contents: JSON, what is in it and where copies of its files lie (engine/ports/container_rows.py).
CREATE TABLE containers (
  id text NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  name text NOT NULL,
  created_at timestamptz NOT NULL,
  last_active_at timestamptz NOT NULL,
  idle_seconds double precision NOT NULL,
  memory bigint NOT NULL,
  runs bigint NOT NULL,
  process text NOT NULL,
  machine text NOT NULL,
  contents bytea NOT NULL,
  held_by text,
  held_until timestamptz
) WITH (fillfactor = 80);
CREATE INDEX containers_list ON containers (owner, created_at, id);
