"""Holds the handlers of the HTTP API, except `POST /v1/responses`. The handlers call stores and upstreams, and depend
on no web server."""
