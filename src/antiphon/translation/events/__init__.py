"""Making what the client gets: items, the Response object, and the events of its stream as bytes."""
