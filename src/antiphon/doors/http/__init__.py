"""The HTTP door: the same core behind an ordinary HTTP server (and the sidecar's own port)."""
