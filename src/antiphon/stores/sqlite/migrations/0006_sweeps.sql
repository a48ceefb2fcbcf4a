-- When each kind of clearing up is due again, by the clock of leases: of all processes one does it. No row: now.
CREATE TABLE sweeps (
  what TEXT NOT NULL PRIMARY KEY,
  due_at BIGINT NOT NULL
) WITHOUT ROWID;
