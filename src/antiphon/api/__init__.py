"""The HTTP API apart from `POST /v1/responses`. Its code calls stores and upstreams, and no web server."""
