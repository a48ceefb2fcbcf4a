"""Contains the HTTP server: the same core over HTTP, publicly and on the sidecar's private port."""
