-- serves: 4
-- The journal of the console: one row for each finished request, without its contents. `ended_at`: milliseconds since
-- the epoch. `took` and `first_at`: microseconds; `first_at` is until the first byte of the upstream's answer.
-- `http_status`: the status of the answer to the client. `cost`: millionths of the prices' currency. `detail`: a JSON
-- object.
CREATE TABLE requests (
  id text NOT NULL PRIMARY KEY,
  ended_at bigint NOT NULL,
  owner text NOT NULL,
  request_id text NOT NULL,
  key_id text NOT NULL,
  key_name text NOT NULL,
  team text NOT NULL,
  door text NOT NULL,
  model text NOT NULL,
  upstream text NOT NULL,
  response_id text NOT NULL,
  previous_id text NOT NULL,
  conversation_id text NOT NULL,
  outcome text NOT NULL,
  fault text NOT NULL,
  code text NOT NULL,
  http_status bigint NOT NULL,
  stored bigint NOT NULL,
  recorded bigint NOT NULL,
  took bigint NOT NULL,
  first_at bigint,
  calls bigint NOT NULL,
  input_tokens bigint NOT NULL,
  cached_tokens bigint NOT NULL,
  output_tokens bigint NOT NULL,
  reasoning_tokens bigint NOT NULL,
  estimated bigint NOT NULL,
  cost bigint NOT NULL,
  detail text NOT NULL
);
-- Both indexes have every column of a filter, so a filter reads no row that it does not select.
CREATE INDEX requests_time ON requests (ended_at, id) INCLUDE (
  outcome, fault, code, model, upstream, door, team, key_id
);
CREATE INDEX requests_owner ON requests (owner, ended_at, id) INCLUDE (
  outcome, fault, code, model, upstream, door, team, key_id
);
CREATE INDEX requests_request ON requests (request_id, ended_at, id) WHERE request_id <> '';
CREATE INDEX requests_response ON requests (response_id) WHERE response_id <> '';
CREATE INDEX requests_previous ON requests (previous_id) WHERE previous_id <> '';
CREATE INDEX requests_conversation ON requests (conversation_id) WHERE conversation_id <> '';
-- The recorded contents of requests. `saved_id`: `response_id` if that response is stored. Responses are deleted in many
-- ways, and their recorded contents with them. `at`: the end of the request. `size`: the bytes that count against the
-- maximum. `body`: compressed, and sealed if the settings ask for it.
CREATE TABLE request_records (
  id text NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  response_id text NOT NULL,
  saved_id text REFERENCES responses (id) ON DELETE CASCADE,
  at bigint NOT NULL,
  size bigint NOT NULL,
  body bytea NOT NULL
);
CREATE INDEX request_records_at ON request_records (at, id, size);
CREATE INDEX request_records_owner ON request_records (owner);
CREATE INDEX request_records_saved ON request_records (saved_id);
CREATE INDEX request_records_response ON request_records (response_id) WHERE response_id <> '';
-- The requests in flight, as each process reports them while a viewer watches. `snapshot`: a JSON object.
CREATE TABLE live_processes (
  process text NOT NULL PRIMARY KEY,
  seen_at bigint NOT NULL,
  snapshot text NOT NULL
);
-- One row: the time until which a viewer watches.
CREATE TABLE live_viewers (
  id integer NOT NULL PRIMARY KEY,
  watched_until bigint NOT NULL
);
-- The requests in flight that a viewer cancels. `owner`: empty if the request may have any owner.
CREATE TABLE live_cancels (
  entry_id text NOT NULL,
  owner text NOT NULL,
  asked_at bigint NOT NULL,
  PRIMARY KEY (entry_id, owner)
);
