"""The CORS rules, the same for every door: which origins may call, and their response headers.

Lives here: which origins are allowed, and their response headers. Not here: the servers that send them (the HTTP
server, Envoy's cors filter), WebSockets (`websocket.origins`).

Invariant: credentials of the browser's own (cookies) are never allowed; a page shows the bearer token it was given.
"""

from __future__ import annotations

from typing import Final

from antiphon.types.transport import Headers

ALLOW_METHODS: Final = "GET,POST,PUT,DELETE"
# A star does not stand for authorization.
ALLOW_HEADERS: Final = "authorization,*"
EXPOSE_HEADERS: Final = "*"
MAX_AGE: Final = "600"


def allows(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether pages of this origin may ask and read."""
    return origin is not None and ("*" in origins or origin in origins)


def answer_headers(origins: tuple[str, ...], origin: str | None) -> Headers:
    """The response headers for this origin. Empty if no origin is allowed."""
    if not origins:
        return ()
    vary = ("vary", "origin")
    if origin is None or not allows(origins, origin):
        return (vary,)
    return (("access-control-allow-origin", origin), ("access-control-expose-headers", EXPOSE_HEADERS), vary)


def preflight_headers(origin: str) -> Headers:
    """The answer to a browser that asks before it sends."""
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", ALLOW_METHODS),
        ("access-control-allow-headers", ALLOW_HEADERS),
        ("access-control-max-age", MAX_AGE),
        ("vary", "origin"),
    )
