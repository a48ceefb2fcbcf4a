"""Contains the HTTP server. It serves the same core as the ext_proc server, on the public port and on the sidecar's
private port."""
