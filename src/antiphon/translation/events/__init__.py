"""Makes the client's output: items, the Response object, and its stream of events as bytes."""
