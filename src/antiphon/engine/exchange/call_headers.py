"""Selects which headers pass between the client and the upstream.

Lives here: which of a client's headers go on with a model call, and which of an upstream's come back. Not here: rate
limits and the like of a translated answer (`translation/answer/upstream_errors.py`), credentials that are added on the
way.

Invariant: what goes on is on a list; nothing that belongs to one connection crosses.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.types.transport import Headers, header_value

DIALECT: Final = "antiphon-dialect"
JSON_TYPE: Final = ("content-type", "application/json")
# What every client may know of an answer for which the gateway's account was used.
_OF_THE_ANSWER: Final = frozenset(
    {
        *("content-type", "cache-control", "x-request-id", "retry-after", "retry-after-ms", "x-should-retry"),
        *("openai-processing-ms", "openai-version", "openai-model", "traceparent", "tracestate"),
    }
)
_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})
_ALWAYS_PASSED: Final = _TRACE_HEADERS | {"x-request-id"}
# What else a Responses service reads; and what is the business of whoever's credentials the call carries.
_NATIVE_HEADERS: Final = frozenset({"openai-beta"})
_ACCOUNT_HEADERS: Final = frozenset({"openai-organization", "openai-project", "idempotency-key"})
# Of a connection, of the bytes on one, or of who holds it: not the client's.
_WIRE_HEADERS: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-encoding", "content-length", "alt-svc", "date", "server"),
    }
)


def forwarded(headers: Headers, route: ModelRoute, *, stream: bool, native: bool, traced: Headers = ()) -> Headers:
    """The headers of a model call: the client's that may go along, and what the call itself says. `traced`: the
    trace's, in place of the client's."""
    allowed = route.headers | _ALWAYS_PASSED
    accept = "text/event-stream" if stream else "application/json"
    if native:
        allowed |= _NATIVE_HEADERS | _ACCOUNT_HEADERS if route.passthrough else _NATIVE_HEADERS
        # The body says whether it is to be a stream, and is not read here.
        accept = header_value(headers, "accept") or "*/*"
    kept = tuple(
        (name, value)
        for name, value in headers
        if (name in allowed and name != "accept") or (name == "authorization" and route.passthrough)
    )
    return (JSON_TYPE, ("accept", accept), *continued(kept, traced))


def continued(headers: Headers, traced: Headers) -> Headers:
    """The headers with the trace that goes on, where there is one, in place of that which came."""
    return (*(pair for pair in headers if pair[0] not in _TRACE_HEADERS), *traced) if traced else headers


def kept_for_later(route: ModelRoute) -> frozenset[str]:
    """Names of the headers that a queued request keeps: never a credential."""
    return (route.headers | _ALWAYS_PASSED | {DIALECT}) - {"authorization"}


def end_to_end(headers: Headers) -> Headers:
    """An answer's headers without those of one connection, and without what Envoy says of itself."""
    of_hop = _WIRE_HEADERS
    if named := header_value(headers, "connection"):
        of_hop |= {name.strip().lower() for name in named.split(",")}
    return tuple(
        (name, value)
        for name, value in headers
        if name[:1] != ":" and name not in of_hop and not name.startswith("x-envoy-")
    )


def of_nobody(headers: Headers) -> Headers:
    """Of an answer's headers those that say nothing of the account that was used: no organisation, cookies, limits."""
    return tuple(pair for pair in end_to_end(headers) if pair[0] in _OF_THE_ANSWER)
