"""Defines the internal HTTP headers between Envoy and Antiphon's processes, the kinds of failed upstream calls, the
format of request ids, and the CORS rules.

Invariants: the log, the response and the upstream get the same request id. The CORS headers never allow cookies, so a
web page must authenticate with a bearer token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

Headers = tuple[tuple[str, str], ...]
"""HTTP headers as pairs of name and value, in order. Names are in lower case. A header with several values has several
pairs."""

LOCAL_REPLY: Final = "x-antiphon-local-reply"
"""The header that Envoy adds to a reply that it generates itself, because no upstream answered. The value is
`unreachable:` and Envoy's reason."""

OWN_JSON: Final = "antiphon_"
OWN_STREAM: Final = "antiphon_stream_"
"""When the sidecar answers a request itself (an immediate response), it sets the field `details`, which Envoy's access
log shows. The field begins with `OWN_JSON` for a JSON body, and with `OWN_STREAM` for an event stream."""

ENDED_EARLY: Final = "stream_ended_early"
"""The name of the line that Envoy logs when a stream in relay mode ends early."""

PICKER_REPLY: Final = "picker"
"""The beginning of the header `LOCAL_REPLY` if the endpoint picker chose no endpoint. The status and the reason follow,
separated by colons."""

NO_MODEL_DOOR: Final = "no listener of Envoy's at sidecar.model_door"
"""The cause of a failed model call that could not connect to Envoy's model listener."""

SECRET_HEADER: Final = "x-antiphon-secret"
"""The header with the secret that Envoy and the sidecar share. The sidecar's TCP ports accept only requests with this
secret."""

CONSOLE_PATH: Final = "/console"
"""The path of the console's start page, with which all paths of the console begin."""

CONSOLE_HEADER: Final = "x-antiphon-console"
"""The header that Envoy adds to each request on a listener that serves the console. Clients cannot set this header."""

PEER_HEADER: Final = "x-antiphon-peer"
"""The header with the address of the client that sent a request to the console through Envoy. Clients cannot set this
header."""

BACKEND_HEADER: Final = "x-antiphon-backend"
"""The header of a model call with the upstream's name, by which Envoy's routes choose the cluster. Clients cannot set
this header."""

UPSTREAM_HEADER: Final = "antiphon-upstream"
"""The response header with the name of the upstream that answered, for a model with several upstreams. Clients also get
this header."""

TRIED_HEADER: Final = "x-antiphon-tried"
"""The header with the number of upstreams that Antiphon or Envoy tried for a model call, including the upstream that
answered."""


def header_value(headers: Headers, name: str) -> str | None:
    """Return the first value of a header, or None. `name` is in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None


def bearer_token(headers: Headers) -> bytes:
    """Return the bearer token of a request, or empty bytes when the request has none."""
    scheme, _, token = (header_value(headers, "authorization") or "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""


class UpstreamFault(Enum):
    """Why an upstream call failed.

    `HELD`: no data arrived before the timeout, and the cause may be the upstream or the client. If a client stops
    reading, Envoy also stops reading from the upstream.
    """

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    HELD = "timed_out_or_held_back"
    CUT = "cut"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """A model call that failed in transport. `detail` is for logs, and contains no secrets."""

    fault: UpstreamFault
    detail: str


REQUEST_ID: Final = "x-request-id"
_REQUEST_ID_LETTERS: Final = "[A-Za-z0-9._:/+=-]"
"""The characters of a valid request id, as a regular expression for Python and Envoy."""
UNFIT_REQUEST_ID: Final = f"(.*[^{_REQUEST_ID_LETTERS[1:-1]}].*)?"
"""A regular expression that matches empty request ids and request ids with invalid characters."""
LONGEST_REQUEST_ID: Final = 128
_REQUEST_ID_FORM: Final = re.compile(f"{_REQUEST_ID_LETTERS}{{1,{LONGEST_REQUEST_ID}}}")


def sent_request_id(headers: Headers) -> str | None:
    """Return the id in the request's `x-request-id` header. Returns None if the header is missing, repeated, or not in
    the valid format."""
    given = [value for name, value in headers if name == REQUEST_ID]
    return given[0] if len(given) == 1 and _REQUEST_ID_FORM.fullmatch(given[0]) else None


def with_own_request_id(headers: Headers, request_id: str) -> Headers:
    """Return the headers with `request_id` in place of the client's request id. If the client sent no request id,
    return the headers unchanged, so that the upstream generates its own id."""
    others = tuple(pair for pair in headers if pair[0] != REQUEST_ID)
    return headers if len(others) == len(headers) else (*others, (REQUEST_ID, request_id))


CORS_METHODS: Final = "GET,POST,PUT,DELETE"
# In browsers the wildcard does not cover `authorization`, so the list names this header.
CORS_HEADERS: Final = "authorization,*"
CORS_EXPOSED: Final = "*"
CORS_MAX_AGE: Final = "600"


def origin_allowed(origins: tuple[str, ...], origin: str | None) -> bool:
    """Return whether pages of this origin may send requests and read the responses."""
    return origin is not None and ("*" in origins or origin in origins)


def cors_headers(origins: tuple[str, ...], origin: str | None) -> Headers:
    """Return the CORS response headers for a request from this origin. Return no headers if the settings allow no
    origin at all."""
    if not origins:
        return ()
    vary = ("vary", "origin")
    if origin is None or not origin_allowed(origins, origin):
        return (vary,)
    return (("access-control-allow-origin", origin), ("access-control-expose-headers", CORS_EXPOSED), vary)


def preflight_headers(origin: str) -> Headers:
    """Return the response headers for a browser's preflight request (`OPTIONS`)."""
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", CORS_METHODS),
        ("access-control-allow-headers", CORS_HEADERS),
        ("access-control-max-age", CORS_MAX_AGE),
        ("vary", "origin"),
    )
