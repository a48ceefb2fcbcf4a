-- What model calls took, summed by day (UTC), owner, model and upstream. `estimated_*`: of calls whose upstream did not
-- say, which are not among the others. `cost` is in millionths of the currency that the prices were in at that time.
CREATE TABLE usage_days (
  day TEXT NOT NULL,
  owner TEXT NOT NULL,
  model TEXT NOT NULL,
  upstream TEXT NOT NULL,
  calls BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  cached_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  estimated_calls BIGINT NOT NULL,
  estimated_input_tokens BIGINT NOT NULL,
  estimated_output_tokens BIGINT NOT NULL,
  cost BIGINT NOT NULL,
  PRIMARY KEY (day, owner, model, upstream)
);
CREATE INDEX usage_days_owner ON usage_days (owner);
