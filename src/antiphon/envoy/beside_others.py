"""Adapts Antiphon's Envoy configuration to a listener that also serves other routes.

This module replaces settings for the whole listener by settings of Antiphon's routes, where Envoy supports that.
`snippet.py` makes the parts of the configuration, and `gateway_api.py` and `istio.py` put them into Kubernetes objects.

Some settings exist only for a whole listener: header and idle timeouts, path normalisation, process limits, tracing.
Such listener-wide settings stay as the listener's owner has set them. One listener-wide change remains: Envoy removes
the trusted headers from client requests, because Antiphon's routes match on them.

Invariant: a request on another route gets the same response as without Antiphon, except for those headers.
"""

from __future__ import annotations

from typing import Any

from antiphon.envoy.local_replies import mapper
from antiphon.envoy.messages import Config, where
from antiphon.envoy.routes import NOT_FOUND, NOTHING, NOWHERE

Parts = dict[str, Any]
PREFLIGHT = "preflight"
"""The name of the routes for CORS preflight requests, which only the cors filter answers."""


def beside_others(found: Parts) -> Parts:
    """Return the result of `snippet.parts` in a form in which no part changes the routes of others."""
    manager = found["connection_manager"]
    ours = f"xds.cluster_name in [{', '.join(repr(one['name']) for one in found['clusters'])}]"
    replies = manager["local_reply_config"]
    asked = f"xds.route_name == '{PREFLIGHT}' && response.code_details == 'no_healthy_upstream'"
    no_page = mapper(asked, NOT_FOUND, None, "invalid_request_error", status_code=404)
    kept = {
        "early_header_mutation_extensions": manager["early_header_mutation_extensions"],
        "local_reply_config": {**replies, "mappers": [no_page, *(_only(ours, one) for one in replies["mappers"])]},
        "access_log": [_only(ours, one) for one in manager["access_log"]],
    }
    routes = [one for one in found["routes"] if one["name"] != NOTHING]
    if "typed_per_filter_config" in found["virtual_host"]:
        routes += _preflights(routes)
    return {
        **found,
        "connection_manager": kept,
        "public_listener": {},
        "overload_manager": {},
        "virtual_host": {},
        "routes": [_with_hosts_fields(one, found["virtual_host"], manager["stream_idle_timeout"]) for one in routes],
    }


def _only(ours: str, entry: Config) -> Config:
    """Limit an access log or a mapper of Envoy to requests for Antiphon's clusters. Envoy evaluates the existing filter
    of `entry` first, because it is cheap."""
    chosen = entry.get("filter")
    if chosen is None:
        return {**entry, "filter": where(ours)}
    filters = chosen["and_filter"]["filters"] if "and_filter" in chosen else [chosen]
    return {**entry, "filter": {"and_filter": {"filters": [*filters, where(ours)]}}}


def _preflights(routes: list[Config]) -> list[Config]:
    """Return routes for CORS preflight requests to pass-through paths. The cors filter answers these requests, but the
    filter runs only for requests that match a route."""
    paths = {one["match"]["path"]: None for one in routes if one["name"].startswith("model/")}
    asked = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    return [
        {
            "name": PREFLIGHT,
            "match": {"path": path, "headers": [asked]},
            "route": {"cluster": NOWHERE, "timeout": "0s"},
        }
        for path in paths
    ]


def _with_hosts_fields(route: Config, host: Config, idle: str) -> Config:
    """Return the route with the settings of its virtual host and with the listener's idle timeout."""
    filters = {**host.get("typed_per_filter_config", {}), **route.get("typed_per_filter_config", {})}
    headers = [*route.get("response_headers_to_add", ()), *host.get("response_headers_to_add", ())]
    return {
        **route,
        "route": {**route["route"], "idle_timeout": idle},
        "response_headers_to_add": headers,
        **({"typed_per_filter_config": filters} if filters else {}),
    }
