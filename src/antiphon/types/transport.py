"""HTTP headers and failed upstream calls as values, request ids, and the CORS rules.

Lives here: the headers that Antiphon's own parts exchange, and the fault of a failed upstream call. Also: the format of
an `x-request-id` and its replacement, the check of a CORS origin, and the response headers for the origin. Not here:
the servers that make request ids and send headers, and the origins of WebSockets (`websocket.origins`).

Invariants: the log, the response and the upstream get the same request id, and that id has this format. The responses
never allow credentials that the browser adds by itself (cookies). A page authenticates with a bearer token, not with
cookies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

Headers = tuple[tuple[str, str], ...]
"""Header pairs in order, with names in lower case. A repeated header keeps all its pairs."""

LOCAL_REPLY: Final = "x-antiphon-local-reply"
"""The header by which Envoy marks a reply that it generates itself, because no upstream answered. The value is
`unreachable:`, followed by the reason in Envoy's words."""

OWN_JSON: Final = "antiphon_"
OWN_STREAM: Final = "antiphon_stream_"
"""Prefixes of the details of the sidecar's immediate responses, which Envoy's access log shows. `OWN_JSON` marks a JSON
body, `OWN_STREAM` an event stream."""

ENDED_EARLY: Final = "stream_ended_early"
"""The name of the line that Envoy logs when a relayed stream ends too early."""

PICKER_REPLY: Final = "picker"
"""The prefix of the value of `LOCAL_REPLY` if the endpoint picker chose no endpoint. The status and the reason follow,
separated by colons."""

NO_MODEL_DOOR: Final = "no listener of Envoy's at sidecar.model_door"
"""The failure cause of a model call that could not connect to Envoy's listener for model calls."""

SECRET_HEADER: Final = "x-antiphon-secret"
"""The header with the secret that the sidecar shares with the gateway in front. The sidecar's ports accept only callers
with this secret."""

CONSOLE_PATH: Final = "/console"
"""The path of the console. Every other path of the console is below it."""

CONSOLE_HEADER: Final = "x-antiphon-console"
"""The header by which Envoy marks a request that came to a listener with the console. Clients cannot set this
header."""

BACKEND_HEADER: Final = "x-antiphon-backend"
"""The name of the upstream for a model call. Envoy's routes choose the cluster by this header. Clients cannot set this
header."""

UPSTREAM_HEADER: Final = "antiphon-upstream"
"""The response header that names the upstream that answered, if there are several. Clients get this header too."""

TRIED_HEADER: Final = "x-antiphon-tried"
"""The number of upstreams that were tried for an answer, including the one that answered."""


def header_value(headers: Headers, name: str) -> str | None:
    """The first value of a header, or None. `name` is in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None


def bearer_token(headers: Headers) -> bytes:
    """The bearer token of a request; empty when the request has none."""
    scheme, _, token = (header_value(headers, "authorization") or "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""


class UpstreamFault(Enum):
    """The reason why an upstream call did not end properly. `HELD`: no data came before the timeout, but the client may
    be the cause. When a client stops reading, the hops in between stop reading from the upstream."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    HELD = "timed_out_or_held_back"
    CUT = "cut"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """A model call that failed in transport. `detail` is for logs, and holds no secrets."""

    fault: UpstreamFault
    detail: str


REQUEST_ID: Final = "x-request-id"
_REQUEST_ID_LETTERS: Final = "[A-Za-z0-9._:/+=-]"
"""The characters of a valid id, as a regular expression for Python and Envoy."""
UNFIT_REQUEST_ID: Final = f"(.*[^{_REQUEST_ID_LETTERS[1:-1]}].*)?"
"""A regular expression that matches ids with invalid characters, and the empty id."""
LONGEST_REQUEST_ID: Final = 128
_REQUEST_ID_FORM: Final = re.compile(f"{_REQUEST_ID_LETTERS}{{1,{LONGEST_REQUEST_ID}}}")


def sent_request_id(headers: Headers) -> str | None:
    """The id of the request's `x-request-id` header. None if the header is missing, repeated, or not in the valid
    format."""
    given = [value for name, value in headers if name == REQUEST_ID]
    return given[0] if len(given) == 1 and _REQUEST_ID_FORM.fullmatch(given[0]) else None


def with_own_request_id(headers: Headers, request_id: str) -> Headers:
    """The headers, with this id in place of the client's. If the client sent no id, the function adds none. The
    upstream then generates an id."""
    others = tuple(pair for pair in headers if pair[0] != REQUEST_ID)
    return headers if len(others) == len(headers) else (*others, (REQUEST_ID, request_id))


CORS_METHODS: Final = "GET,POST,PUT,DELETE"
# Browsers do not count `authorization` as covered by the wildcard, so the list names it.
CORS_HEADERS: Final = "authorization,*"
CORS_EXPOSED: Final = "*"
CORS_MAX_AGE: Final = "600"


def origin_allowed(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether pages of this origin may send requests and read the responses."""
    return origin is not None and ("*" in origins or origin in origins)


def cors_headers(origins: tuple[str, ...], origin: str | None) -> Headers:
    """The CORS response headers for this origin. Empty if the settings allow no origin."""
    if not origins:
        return ()
    vary = ("vary", "origin")
    if origin is None or not origin_allowed(origins, origin):
        return (vary,)
    return (("access-control-allow-origin", origin), ("access-control-expose-headers", CORS_EXPOSED), vary)


def preflight_headers(origin: str) -> Headers:
    """The response headers for a browser's preflight request (`OPTIONS`)."""
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", CORS_METHODS),
        ("access-control-allow-headers", CORS_HEADERS),
        ("access-control-max-age", CORS_MAX_AGE),
        ("vary", "origin"),
    )
