"""What a transport reports about a call: headers, and how the call failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

Headers = tuple[tuple[str, str], ...]
"""Header pairs in order, names in lower case; duplicates are kept."""

LOCAL_REPLY: Final = "x-antiphon-local-reply"
"""The header by which Envoy marks an answer that it made itself, because no upstream gave one: `unreachable:`, and the
reason in Envoy's words."""

OWN_JSON: Final = "antiphon_"
OWN_STREAM: Final = "antiphon_stream_"
"""How the details of the sidecar's immediate answers begin (Envoy's access log shows them): JSON, an event stream."""

ENDED_EARLY: Final = "stream_ended_early"
"""The name of Envoy's line about a relayed stream that ended before its time."""

PICKER_REPLY: Final = "picker"
"""The beginning of the value of `LOCAL_REPLY` if the endpoint picker chose no endpoint. The status and the reason
follow, after colons."""

NO_MODEL_DOOR: Final = "no listener of Envoy's at sidecar.model_door"
"""In the cause of a call that never got as far as Envoy."""

SECRET_HEADER: Final = "x-antiphon-secret"
"""The header with the secret that the sidecar shares with the gateway in front. Only that gateway may use the sidecar's
ports."""

BACKEND_HEADER: Final = "x-antiphon-backend"
"""Which upstream a model call is for; Envoy's routes find the cluster by it. Clients cannot send it."""

UPSTREAM_HEADER: Final = "antiphon-upstream"
"""Which of several upstreams has answered; clients get it too."""

TRIED_HEADER: Final = "x-antiphon-tried"
"""How many of several upstreams were asked for an answer, the one that gave it included."""


def header_value(headers: Headers, name: str) -> str | None:
    """The first value of a header, by lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


class UpstreamFault(Enum):
    """Why an upstream call ended without a proper end. `HELD`: nothing came in time, which may be the client's doing:
    it did not read, and who is in between held the upstream back."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    HELD = "timed_out_or_held_back"
    CUT = "cut"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """An upstream call that failed in transport. `detail` is for logs, and holds no secrets."""

    fault: UpstreamFault
    detail: str
