"""Types for HTTP headers and for failed upstream calls, in the form in which the transport layer reports them."""

from __future__ import annotations

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
