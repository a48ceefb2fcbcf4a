-- serves: 12
-- The use of each quota in its current period. `subject`: an owner, a key, a team or a model. `starts`: the start of the
-- period in milliseconds since the epoch, or 0. `used`: the settled amount. `leased`: the amount that processes hold for
-- requests. `granted`: the amount of the last grant. `warned`: 0, 1 at the grant that crossed the share for a warning,
-- and 2 after it.
CREATE TABLE quota_counters (
  subject TEXT NOT NULL,
  measure TEXT NOT NULL,
  starts BIGINT NOT NULL,
  used BIGINT NOT NULL,
  leased BIGINT NOT NULL,
  granted BIGINT NOT NULL,
  warned BIGINT NOT NULL,
  PRIMARY KEY (subject, measure)
);
-- The part of `leased` that each process holds.
CREATE TABLE quota_leases (
  holder TEXT NOT NULL,
  subject TEXT NOT NULL,
  measure TEXT NOT NULL,
  starts BIGINT NOT NULL,
  amount BIGINT NOT NULL,
  PRIMARY KEY (holder, subject, measure)
);
-- The processes that hold leases, with the time of their last sign of life.
CREATE TABLE quota_holders (
  holder TEXT NOT NULL PRIMARY KEY,
  seen_at BIGINT NOT NULL
);
