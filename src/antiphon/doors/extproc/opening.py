"""Reads the first message of a stream: the request's headers, the owner, and Envoy's configuration.

This module evaluates the request's headers before the body arrives. `stream.py` reads the body and chooses between
relay and drive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from antiphon.doors.context import DoorContext
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.errors import AntiphonError
from antiphon.ids import new_id
from antiphon.types.transport import Headers, header_value, sent_request_id, with_own_request_id

# A module constant is faster than a lookup in the enumeration class for each message.
_RESPONSE_HEADERS: Final = MessageKind.RESPONSE_HEADERS
_REQUEST_HEADERS: Final = MessageKind.REQUEST_HEADERS

_PLAIN_PATHS: Final = frozenset({"/health", "/ready"})
_DUPLEX: Final = "FULL_DUPLEX_STREAMED"


class ProtocolError(AntiphonError):
    """Raised when the sidecar cannot serve a stream, because Envoy is misconfigured or the peer is not Envoy. The
    message tells the operator what to change."""


@dataclass(slots=True)
class ClientRequest:
    """One client request. `path` is the path without the query string, which is in `query`. `is_exchange` is True for a
    request that creates a response. `trace` has the trace headers of Envoy's span, if Envoy traces. `trailers` is True
    when the request ended with trailers. `metadata` has the values that earlier Envoy filters wrote, by metadata
    namespace."""

    method: str
    path: str
    query: str
    headers: Headers
    request_id: str
    is_exchange: bool
    trace: Headers = ()
    body: bytes = b""
    trailers: bool = False
    metadata: Mapping[str, Mapping[str, object]] | None = None


def is_refused_before(opening: Received) -> bool:
    """Whether an earlier Envoy filter, such as a rate limit, has already answered the client with a 4xx status. After
    such an answer Envoy sends the sidecar only this response, without the request. A response head with another status
    comes first only if `request_header_mode` is wrong."""
    return opening.kind is _RESPONSE_HEADERS and (header_value(opening.headers, ":status") or "")[:1] == "4"


def read_opening(context: DoorContext, opening: Received, trace: Headers) -> ClientRequest:
    """Read the client request from the stream's first message, without its body. Raises `ProtocolError`."""
    _check_modes(opening)
    headers = opening.headers
    given = sent_request_id(headers)
    request_id = given or new_id("req")
    method = header_value(headers, ":method") or ""
    path, _, query = (header_value(headers, ":path") or "").partition("?")
    return ClientRequest(
        method,
        path,
        query,
        headers if given else with_own_request_id(headers, request_id),
        request_id,
        is_exchange=context.router.is_exchange(method, path),
        trace=trace,
        metadata=opening.metadata,
    )


def caller_of(context: DoorContext, request: ClientRequest) -> Caller:
    """Return the caller of the request, or `NO_CALLER` for a path that needs no credentials. Raises `NotFound` and
    `Unauthorized`."""
    metadata = request.metadata or {}
    if request.is_exchange:
        return context.owners.resolve(request.headers, metadata)
    path = request.path
    if not (path.startswith("/v1/") or path in _PLAIN_PATHS):
        # The router also has private paths (metrics), but requests through Envoy may reach only public paths.
        raise context.router.unknown(request.method, path)
    return NO_CALLER if context.router.is_open(path) else context.caller_of(path, request.headers, metadata)


def _check_modes(opening: Received) -> None:
    if opening.kind is not _REQUEST_HEADERS:
        raise ProtocolError(
            f"Envoy's first message is {opening.kind.value}, not request_headers: set "
            "processing_mode.request_header_mode to SEND"
        )
    if opening.observing:
        raise ProtocolError("observability_mode is on, so Envoy would ignore the sidecar's answers: turn it off")
    modes = opening.modes
    if modes is None:
        raise ProtocolError(
            "Envoy's first message names no body modes: use a newer Envoy, and set "
            "processing_mode.request_body_mode and response_body_mode to FULL_DUPLEX_STREAMED"
        )
    if modes[0] != _DUPLEX:
        raise ProtocolError(f"processing_mode.request_body_mode is {modes[0]}: set it to {_DUPLEX}")
    if modes[1] != _DUPLEX:
        raise ProtocolError(f"processing_mode.response_body_mode is {modes[1]}: set it to {_DUPLEX}")
