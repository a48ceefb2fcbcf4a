"""Builds the few Envoy configuration messages that Antiphon uses, as plain dictionaries.

This module has the type URLs and the fields of these messages. `routes.py`, `bootstrap.py` and other modules fill the
messages with values.

Invariant: no function of this module reads settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions."
"""The prefix of the type URL of every extension message."""

FULL_DUPLEX: Config = {
    "request_header_mode": "SEND",
    "response_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_trailer_mode": "SEND",
}
"""The ext_proc processing modes that Antiphon needs. Only in these modes may a processor answer after the whole body,
and send output after the upstream's end."""


def typed(kind: str, **fields: object) -> Config:
    """Build a typed extension message. `kind` is the message's type name after `envoy.extensions.`."""
    return {"@type": EXTENSIONS + kind, **fields}


def address(text: str) -> Config:
    """Convert `unix:PATH` or `HOST:PORT` to an Envoy address."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    return socket_address(host.strip("[]") or "0.0.0.0", int(port))


def socket_address(host: str, port: int) -> Config:
    """Build an Envoy address from a host and a port. `host` is a name, or an IP address without brackets."""
    return {"socket_address": {"address": host, "port_value": port}}


def internal_address(name: str) -> Config:
    """Build the address of an internal listener in the same Envoy."""
    return {"envoy_internal_address": {"server_listener_name": name}}


def error_body(message: str, kind: str, code: str | None) -> str:
    """Build an OpenAI error object as JSON text."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def direct_response(name: str, match: Config, status: int, body: str) -> Config:
    """Build a route with which Envoy itself answers with this JSON body."""
    return {
        "name": name,
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [overwritten("content-type", "application/json")],
    }


def http_filter(name: str, config: Config, *, disabled: bool = False) -> Config:
    """Build an entry of `http_filters`."""
    entry: Config = {"name": name}
    if disabled:
        entry["disabled"] = True
    return {**entry, "typed_config": config}


def router() -> Config:
    """Build the router filter, which is the last entry of `http_filters`."""
    return http_filter("envoy.filters.http.router", typed("filters.http.router.v3.Router"))


def http_manager(
    stat_prefix: str,
    routes: list[Config],
    *,
    name: str = "",
    filters: Sequence[Config] = (),
    host: Config | None = None,
    **fields: object,
) -> Config:
    """Build an HTTP connection manager with one virtual host for every host name. `host` has further fields of the
    virtual host. The route configuration is called `name`, or `stat_prefix` if `name` is empty. `filters` come before
    the router."""
    virtual_host = {"name": "all", "domains": ["*"], **(host or {}), "routes": routes}
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=stat_prefix,
        **fields,
        http_filters=[*filters, router()],
        route_config={"name": name or stat_prefix, "virtual_hosts": [virtual_host]},
    )


def early_headers(name: str, mutations: list[Config]) -> Config:
    """Build an entry of `early_header_mutation_extensions`, which changes request headers before Envoy selects a
    route."""
    config = typed("http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=mutations)
    return {"name": name, "typed_config": config}


def where(expression: str) -> Config:
    """Build a filter for access logs and local replies that is true when the CEL expression is true."""
    kind = typed("access_loggers.filters.cel.v3.ExpressionFilter", expression=expression)
    return {"extension_filter": {"name": "cel", "typed_config": kind}}


def log_lines(name: str, parts: Config, expression: str | None = None) -> Config:
    """Build an access log with JSON lines on standard output. The log has all requests, or only the requests for which
    the CEL expression is true."""
    return {
        "name": name,
        **({} if expression is None else {"filter": where(expression)}),
        "typed_config": typed("access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": parts}),
    }


def listener(name: str, where: str | None, manager: Config) -> Config:
    """Build a listener with one HTTP connection manager. Without an address, the listener is internal, so only clusters
    of the same Envoy can reach it."""
    return {
        "name": name,
        **({"internal_listener": {}} if where is None else {"address": address(where)}),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def overwritten(header: str, value: str) -> Config:
    """Build a header entry that sets the header to this value and replaces other values."""
    return {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def cluster(name: str, endpoints: list[Config], *, retries: int = 100, **fields: object) -> Config:
    """Build a cluster with these endpoint addresses. `retries` is the maximum number of concurrent retries. Envoy
    counts a retry as concurrent until the retry's stream ends."""
    return shaped_cluster(
        name, [{"lb_endpoints": [{"endpoint": {"address": where}} for where in endpoints]}], retries=retries, **fields
    )


def shaped_cluster(name: str, localities: list[Config], *, retries: int, **fields: object) -> Config:
    """Build a cluster from localities, which can have priorities or endpoint weights."""
    return {
        "name": name,
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100000,
                    "max_pending_requests": 100000,
                    "max_requests": 100000,
                    "max_retries": retries,
                }
            ]
        },
        **fields,
        "load_assignment": {"cluster_name": name, "endpoints": localities},
    }


def http_options(**fields: object) -> Config:
    """Build the cluster field with the HTTP version and the HTTP options of the endpoints."""
    options = typed("upstreams.http.v3.HttpProtocolOptions", **fields)
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def internal_http_options() -> Config:
    """Build HTTP options for a cluster whose endpoints are internal listeners of the same Envoy."""
    return http_options(
        # This idle timeout is shorter than the listener's, so that no request uses a connection that is closing.
        common_http_protocol_options={"idle_timeout": "60s"},
        explicit_http_config={"http_protocol_options": {}},
    )
