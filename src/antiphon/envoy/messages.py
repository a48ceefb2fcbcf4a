"""Builders for the few Envoy configuration messages that Antiphon uses, as plain dictionaries.

Lives here: type URLs and shapes. Not here: their use (`routes.py`, `bootstrap.py`).

Invariant: nothing here reads settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions."
"""The prefix of every extension message's type."""

FULL_DUPLEX: Config = {
    "request_header_mode": "SEND",
    "response_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_trailer_mode": "SEND",
}
"""The only modes in which a processor may answer after the whole body, and send output after the upstream's end."""


def typed(kind: str, **fields: object) -> Config:
    """A typed extension message; `kind` follows `envoy.extensions.`."""
    return {"@type": EXTENSIONS + kind, **fields}


def address(text: str) -> Config:
    """`unix:PATH` or `HOST:PORT` as an Envoy address."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    return socket_address(host.strip("[]") or "0.0.0.0", int(port))


def socket_address(host: str, port: int) -> Config:
    """A host's name, or its address without brackets, as an Envoy address."""
    return {"socket_address": {"address": host, "port_value": port}}


def internal_address(name: str) -> Config:
    """The address of a listener inside this Envoy."""
    return {"envoy_internal_address": {"server_listener_name": name}}


def error_body(message: str, kind: str, code: str | None) -> str:
    """An OpenAI error object as text."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def direct_response(name: str, match: Config, status: int, body: str) -> Config:
    """A route with a direct JSON response."""
    return {
        "name": name,
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [overwritten("content-type", "application/json")],
    }


def http_filter(name: str, config: Config, *, disabled: bool = False) -> Config:
    """An entry of `http_filters`."""
    entry: Config = {"name": name}
    if disabled:
        entry["disabled"] = True
    return {**entry, "typed_config": config}


def router() -> Config:
    """The last entry of `http_filters`."""
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
    """An HTTP connection manager for every host. `host`: the fields of its virtual host. The route configuration has
    the `name`, or `stat_prefix`. `filters` come before the router."""
    virtual_host = {"name": "all", "domains": ["*"], **(host or {}), "routes": routes}
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=stat_prefix,
        **fields,
        http_filters=[*filters, router()],
        route_config={"name": name or stat_prefix, "virtual_hosts": [virtual_host]},
    )


def early_headers(name: str, mutations: list[Config]) -> Config:
    """An entry of `early_header_mutation_extensions`."""
    config = typed("http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=mutations)
    return {"name": name, "typed_config": config}


def where(expression: str) -> Config:
    """A CEL expression as a filter of access logs and local replies."""
    kind = typed("access_loggers.filters.cel.v3.ExpressionFilter", expression=expression)
    return {"extension_filter": {"name": "cel", "typed_config": kind}}


def log_lines(name: str, parts: Config, expression: str | None = None) -> Config:
    """An access log with JSON lines on standard output, for all requests or for those where the CEL expression is
    true."""
    return {
        "name": name,
        **({} if expression is None else {"filter": where(expression)}),
        "typed_config": typed("access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": parts}),
    }


def listener(name: str, where: str | None, manager: Config) -> Config:
    """A listener with one HTTP connection manager. Without an address, only clusters of this Envoy can reach it."""
    return {
        "name": name,
        **({"internal_listener": {}} if where is None else {"address": address(where)}),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def overwritten(header: str, value: str) -> Config:
    """A header with this value, whatever its value was before."""
    return {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def cluster(name: str, endpoints: list[Config], *, retries: int = 100, **fields: object) -> Config:
    """A cluster with these endpoint addresses. `retries`: the maximum of concurrent retries (a retry counts until its
    stream ends)."""
    return shaped_cluster(
        name, [{"lb_endpoints": [{"endpoint": {"address": where}} for where in endpoints]}], retries=retries, **fields
    )


def shaped_cluster(name: str, localities: list[Config], *, retries: int, **fields: object) -> Config:
    """A cluster with priorities or weights of endpoints."""
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
    """The field of a cluster with its endpoints' HTTP version and options."""
    options = typed("upstreams.http.v3.HttpProtocolOptions", **fields)
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def internal_http_options() -> Config:
    """HTTP options for a cluster of listeners inside this Envoy."""
    return http_options(
        # Shorter than the listener's timeout, so that no request uses a connection that is closing.
        common_http_protocol_options={"idle_timeout": "60s"},
        explicit_http_config={"http_protocol_options": {}},
    )
