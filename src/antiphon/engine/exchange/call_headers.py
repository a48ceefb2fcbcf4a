"""Selects which headers pass between the client and the upstream.

This module chooses the client's headers that Antiphon sends with a model call, and the upstream's headers that the
client gets. `translation/answer/upstream_errors.py` chooses the rate limit headers of a translated answer. Envoy or the
HTTP client adds the upstream's credentials.

Invariants: a model call contains only those client headers that this module or the settings list. Antiphon forwards
hop-by-hop headers in neither direction.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.types.transport import Headers, header_value

DIALECT: Final = "antiphon-dialect"
JSON_TYPE: Final = ("content-type", "application/json")
# The upstream's response headers that every client may see when the model call used the gateway's account.
_OF_THE_ANSWER: Final = frozenset(
    {
        *("content-type", "cache-control", "x-request-id", "retry-after", "retry-after-ms", "x-should-retry"),
        *("openai-processing-ms", "openai-version", "openai-model", "traceparent", "tracestate"),
    }
)
_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})
_ALWAYS_PASSED: Final = _TRACE_HEADERS | {"x-request-id"}
# Request headers that pass only to an upstream that serves the Responses API itself. The account headers pass only if
# the call carries the client's credentials.
_NATIVE_HEADERS: Final = frozenset({"openai-beta"})
_ACCOUNT_HEADERS: Final = frozenset({"openai-organization", "openai-project", "idempotency-key"})
# Headers that describe a connection, its encoding or its server. Antiphon never passes these headers on.
_WIRE_HEADERS: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-encoding", "content-length", "alt-svc", "date", "server"),
    }
)


def forwarded(headers: Headers, route: ModelRoute, *, stream: bool, native: bool, traced: Headers = ()) -> Headers:
    """Return the headers of a model call: `content-type`, `accept`, and the client's allowed headers.

    If `traced` has trace headers, they replace the client's trace headers.
    """
    allowed = route.headers | _ALWAYS_PASSED
    accept = "text/event-stream" if stream else "application/json"
    if native:
        allowed |= _NATIVE_HEADERS | _ACCOUNT_HEADERS if route.passthrough else _NATIVE_HEADERS
        # The body's field `stream` selects a stream or a whole answer, and this function does not see the body. So the
        # call carries the client's `accept` header.
        accept = header_value(headers, "accept") or "*/*"
    kept = tuple(
        (name, value)
        for name, value in headers
        if (name in allowed and name != "accept") or (name == "authorization" and route.passthrough)
    )
    return (JSON_TYPE, ("accept", accept), *continued(kept, traced))


def continued(headers: Headers, traced: Headers) -> Headers:
    """Return `headers` with the trace headers replaced by those in `traced`. If `traced` is empty, return `headers`
    unchanged."""
    return (*(pair for pair in headers if pair[0] not in _TRACE_HEADERS), *traced) if traced else headers


def kept_for_later(route: ModelRoute) -> frozenset[str]:
    """Return the names of the headers that Antiphon stores with a queued request for the later model call. The result
    never contains `authorization`, because that header has the client's credential."""
    return (route.headers | _ALWAYS_PASSED | {DIALECT}) - {"authorization"}


def end_to_end(headers: Headers) -> Headers:
    """Return an answer's headers without hop-by-hop headers, pseudo-headers, and Envoy's `x-envoy-` headers."""
    of_hop = _WIRE_HEADERS
    if named := header_value(headers, "connection"):
        of_hop |= {name.strip().lower() for name in named.split(",")}
    return tuple(
        (name, value)
        for name, value in headers
        if name[:1] != ":" and name not in of_hop and not name.startswith("x-envoy-")
    )


def of_nobody(headers: Headers) -> Headers:
    """Return the headers of an answer that reveal nothing about the upstream account. The result omits cookies, and
    headers about the organization and its rate limits."""
    return tuple(pair for pair in end_to_end(headers) if pair[0] in _OF_THE_ANSWER)
