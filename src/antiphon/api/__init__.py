"""The handlers of the HTTP API, except `POST /v1/responses`. Its code calls stores and upstreams, and no web server."""
