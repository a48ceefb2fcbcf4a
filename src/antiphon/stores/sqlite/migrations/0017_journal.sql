-- serves: 12
-- The journal of the console: one row for each finished request, without its contents. `ended_at`: milliseconds since
-- the epoch. `took` and `first_at`: microseconds; `first_at` is until the first byte of the upstream's answer.
-- `http_status`: the status of the answer to the client. `cost`: millionths of the prices' currency. `detail`: a JSON
-- object.
CREATE TABLE requests (
  id TEXT NOT NULL PRIMARY KEY,
  ended_at BIGINT NOT NULL,
  owner TEXT NOT NULL,
  request_id TEXT NOT NULL,
  key_id TEXT NOT NULL,
  key_name TEXT NOT NULL,
  team TEXT NOT NULL,
  door TEXT NOT NULL,
  model TEXT NOT NULL,
  upstream TEXT NOT NULL,
  response_id TEXT NOT NULL,
  previous_id TEXT NOT NULL,
  conversation_id TEXT NOT NULL,
  outcome TEXT NOT NULL,
  fault TEXT NOT NULL,
  code TEXT NOT NULL,
  http_status BIGINT NOT NULL,
  stored BIGINT NOT NULL,
  recorded BIGINT NOT NULL,
  took BIGINT NOT NULL,
  first_at BIGINT,
  calls BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  cached_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  estimated BIGINT NOT NULL,
  cost BIGINT NOT NULL,
  detail TEXT NOT NULL
);
-- Both indexes have every column of a filter, so a filter reads no row that it does not select.
CREATE INDEX requests_time ON requests (ended_at, id, outcome, fault, code, model, upstream, door, team, key_id);
CREATE INDEX requests_owner ON requests (
  owner, ended_at, id, outcome, fault, code, model, upstream, door, team, key_id
);
CREATE INDEX requests_request ON requests (request_id, ended_at, id) WHERE request_id <> '';
CREATE INDEX requests_response ON requests (response_id) WHERE response_id <> '';
CREATE INDEX requests_previous ON requests (previous_id) WHERE previous_id <> '';
CREATE INDEX requests_conversation ON requests (conversation_id) WHERE conversation_id <> '';
-- The recorded contents of requests. `saved_id`: `response_id` if that response is stored. Responses are deleted in many
-- ways, and their recorded contents with them. `at`: the end of the request. `size`: the bytes that count against the
-- maximum. `body`: compressed, and sealed if the settings ask for it.
CREATE TABLE request_records (
  id TEXT NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  response_id TEXT NOT NULL,
  saved_id TEXT REFERENCES responses (id) ON DELETE CASCADE,
  at BIGINT NOT NULL,
  size BIGINT NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX request_records_at ON request_records (at, id, size);
CREATE INDEX request_records_owner ON request_records (owner);
CREATE INDEX request_records_saved ON request_records (saved_id);
CREATE INDEX request_records_response ON request_records (response_id) WHERE response_id <> '';
-- The requests in flight, as each process reports them while a viewer watches. `snapshot`: a JSON object.
CREATE TABLE live_processes (
  process TEXT NOT NULL PRIMARY KEY,
  seen_at BIGINT NOT NULL,
  snapshot TEXT NOT NULL
);
-- One row: the time until which a viewer watches.
CREATE TABLE live_viewers (
  id INTEGER NOT NULL PRIMARY KEY,
  watched_until BIGINT NOT NULL
);
-- The requests in flight that a viewer cancels. `owner`: empty if the request may have any owner.
CREATE TABLE live_cancels (
  entry_id TEXT NOT NULL,
  owner TEXT NOT NULL,
  asked_at BIGINT NOT NULL,
  PRIMARY KEY (entry_id, owner)
);
