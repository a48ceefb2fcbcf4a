"""Contains the HTTP server, which serves the public port, and behind Envoy the sidecar's private port."""
