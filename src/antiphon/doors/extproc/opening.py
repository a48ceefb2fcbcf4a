"""Reads the first message of a stream: the request's headers, the owner, and Envoy's configuration.

Lives here: the facts that are known before the body. Not here: reading the body, the choice of relay or drive
(`stream.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from antiphon.doors.context import DoorContext
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.errors import AntiphonError, NotFound
from antiphon.ids import new_id
from antiphon.types.request_ids import sent_id, with_own_id
from antiphon.types.transport import Headers, header_value

# A module constant, because access to an enumeration's member looks it up in the class each time.
_RESPONSE_HEADERS: Final = MessageKind.RESPONSE_HEADERS
_REQUEST_HEADERS: Final = MessageKind.REQUEST_HEADERS

_PLAIN_PATHS: Final = frozenset({"/health", "/ready"})
_DUPLEX: Final = "FULL_DUPLEX_STREAMED"


class ProtocolError(AntiphonError):
    """Envoy's configuration cannot work, or the peer is not Envoy. The message contains advice."""


@dataclass(slots=True)
class ClientRequest:
    """One client request. `path` is without its `query`. `is_exchange`: it creates a response. `trace`: the trace
    headers of Envoy's span, if it traces. `trailers`: whether the request ended with trailers."""

    method: str
    path: str
    query: str
    headers: Headers
    request_id: str
    is_exchange: bool
    trace: Headers = ()
    body: bytes = b""
    trailers: bool = False


def is_refused_before(opening: Received) -> bool:
    """Whether an earlier filter (a rate limit, an authentication) has answered the client. Then this answer is the only
    message. Other statuses arrive first only if `request_header_mode` is wrong."""
    return opening.kind is _RESPONSE_HEADERS and (header_value(opening.headers, ":status") or "")[:1] == "4"


def read_opening(context: DoorContext, opening: Received, trace: Headers) -> ClientRequest:
    """The request, still without its body. Raises `ProtocolError`."""
    _check_modes(opening)
    headers = opening.headers
    given = sent_id(headers)
    request_id = given or new_id("req")
    method = header_value(headers, ":method") or ""
    path, _, query = (header_value(headers, ":path") or "").partition("?")
    return ClientRequest(
        method,
        path,
        query,
        headers if given else with_own_id(headers, request_id),
        request_id,
        is_exchange=context.router.is_exchange(method, path),
        trace=trace,
    )


def caller_of(context: DoorContext, request: ClientRequest) -> Caller:
    """The caller of the request; `NO_CALLER` for a public path. Raises `NotFound` and `Unauthorized`."""
    if request.is_exchange:
        return context.owners.resolve(request.headers)
    path = request.path
    if not (path.startswith("/v1/") or path in _PLAIN_PATHS):
        # The router also has private paths (metrics), but requests through Envoy may reach only public ones.
        raise NotFound(f"Unknown request URL: {request.method} {path[:256]}.", code="unknown_url")
    return NO_CALLER if context.router.is_open(path) else context.owners.resolve(request.headers)


def _check_modes(opening: Received) -> None:
    if opening.kind is not _REQUEST_HEADERS:
        raise ProtocolError(
            f"the first message is {opening.kind.value}, not request_headers: "
            "set processing_mode.request_header_mode to SEND"
        )
    if opening.observing:
        raise ProtocolError("observability_mode is on, so answers would be ignored: turn it off")
    modes = opening.modes
    if modes is None:
        raise ProtocolError(
            "the first message names no body modes: a newer Envoy is needed, with "
            "processing_mode.request_body_mode and response_body_mode FULL_DUPLEX_STREAMED"
        )
    if modes[0] != _DUPLEX:
        raise ProtocolError(f"processing_mode.request_body_mode is {modes[0]}: set it to {_DUPLEX}")
    if modes[1] != _DUPLEX:
        raise ProtocolError(f"processing_mode.response_body_mode is {modes[1]}: set it to {_DUPLEX}")
