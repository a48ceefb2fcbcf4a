"""The CORS rules, the same for the HTTP server and Envoy: the allowed origins, and the response headers for an origin.

Lives here: the check of an origin, and the response headers. Not here: the servers that send the headers (the HTTP
server, Envoy's cors filter), and the origins of WebSockets (`websocket.origins`).

Invariant: the responses never allow credentials that the browser adds by itself (cookies). A page authenticates with a
bearer token, not with cookies.
"""

from __future__ import annotations

from typing import Final

from antiphon.types.transport import Headers

ALLOW_METHODS: Final = "GET,POST,PUT,DELETE"
# Browsers do not count `authorization` as covered by the wildcard, so the list names it.
ALLOW_HEADERS: Final = "authorization,*"
EXPOSE_HEADERS: Final = "*"
MAX_AGE: Final = "600"


def allows(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether pages of this origin may send requests and read the responses."""
    return origin is not None and ("*" in origins or origin in origins)


def answer_headers(origins: tuple[str, ...], origin: str | None) -> Headers:
    """The CORS response headers for this origin. Empty if the settings allow no origin."""
    if not origins:
        return ()
    vary = ("vary", "origin")
    if origin is None or not allows(origins, origin):
        return (vary,)
    return (("access-control-allow-origin", origin), ("access-control-expose-headers", EXPOSE_HEADERS), vary)


def preflight_headers(origin: str) -> Headers:
    """The response headers for a browser's preflight request (`OPTIONS`)."""
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", ALLOW_METHODS),
        ("access-control-allow-headers", ALLOW_HEADERS),
        ("access-control-max-age", MAX_AGE),
        ("vary", "origin"),
    )
