"""The HTTP door: the same core behind an HTTP server, which is also the sidecar's own port."""
