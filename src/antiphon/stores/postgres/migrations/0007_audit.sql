-- serves: 4
-- The changes that operators made to keys and to stored data. `detail`: a JSON object. `at`: milliseconds since the
-- epoch.
CREATE TABLE audit (
  id text NOT NULL PRIMARY KEY,
  at bigint NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  object text NOT NULL,
  owner text NOT NULL,
  detail text NOT NULL
);
CREATE INDEX audit_at ON audit (at);
