-- serves: 4
-- Both indexes now also have the columns that the console sums, so a sum over many requests reads no row of the table.
DROP INDEX requests_time;
DROP INDEX requests_owner;
CREATE INDEX requests_time ON requests (ended_at, id) INCLUDE (
  outcome, fault, code, model, upstream, door, team, key_id,
  owner, input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost
);
CREATE INDEX requests_owner ON requests (owner, ended_at, id) INCLUDE (
  outcome, fault, code, model, upstream, door, team, key_id,
  input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost
);
