"""Generates failover and load balancing among several upstreams of one route.

This module generates the clusters that select an upstream, by order or by weight. This module also generates one
internal listener per upstream. `routes.py` decides when Envoy tries another upstream, and `clusters.py` generates the
upstreams' own clusters.

A route rewrites path, host and credentials before a cluster selects an endpoint, and a retry sends the same request. So
an aggregate cluster would send one upstream's API key to another upstream. Therefore the endpoints of a group's cluster
are internal listeners of the same Envoy. The routes of each listener adapt the request to its upstream.

Invariant: only routes of an upstream's own listener set the path, host and credentials of requests to that upstream.
"""

from __future__ import annotations

from antiphon.config.settings import Settings
from antiphon.config.upstreams import UpstreamGroup
from antiphon.envoy.failures import failed_tries, local_replies
from antiphon.envoy.messages import (
    Config,
    direct_response,
    http_manager,
    internal_address,
    internal_http_options,
    listener,
    overwritten,
    shaped_cluster,
    typed,
)
from antiphon.envoy.picker import is_picked
from antiphon.envoy.routes import NOT_FOUND_BODY, group_cluster, upstream_routes
from antiphon.types.transport import UPSTREAM_HEADER


def bootstrap_extensions(settings: Settings) -> list[Config]:
    """Return the bootstrap extension for internal listeners. The list is empty if the configuration has no internal
    listeners."""
    if not (settings.groups or is_picked(settings)):
        return []
    kind = typed("bootstrap.internal_listener.v3.InternalListener")
    return [{"name": "envoy.bootstrap.internal_listener", "typed_config": kind}]


def group_clusters(settings: Settings) -> list[Config]:
    """Return one cluster for each list of upstreams."""
    return [_group_cluster(group) for group in settings.groups.values()]


def upstream_listeners(settings: Settings) -> list[Config]:
    """Return one internal listener for each upstream that is in a list."""
    names = dict.fromkeys(name for group in settings.groups.values() for name in group.names)
    return [_upstream_listener(settings, name) for name in names]


def _listener_name(upstream: str) -> str:
    return f"upstream_{upstream}"


def _group_cluster(group: UpstreamGroup) -> Config:
    endpoints: list[Config] = [
        {"endpoint": {"address": internal_address(_listener_name(name))}} for name in group.names
    ]
    if group.weights:
        for endpoint, weight in zip(endpoints, group.weights, strict=True):
            endpoint["load_balancing_weight"] = weight
        localities: list[Config] = [{"lb_endpoints": endpoints}]
    else:
        localities = [{"priority": place, "lb_endpoints": [one]} for place, one in enumerate(endpoints)]
    return shaped_cluster(
        group_cluster(group),
        localities,
        # While one upstream is down, each request to another upstream is a retry, and counts until its stream ends.
        retries=100_000,
        type="STATIC",
        lb_policy="ROUND_ROBIN",
        # If no upstream is healthy, Envoy tries all of them, and the client gets their errors.
        common_lb_config={"healthy_panic_threshold": {"value": 1}},
        # For a while Envoy does not try an unreachable upstream first, because every request would wait for it. Error
        # responses to single requests (500, 429) do not count as unreachable.
        outlier_detection={
            "consecutive_gateway_failure": 3,
            "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "10s",
            "max_ejection_time": "10s",
            "max_ejection_percent": 100,
        },
        **internal_http_options(),
    )


def _upstream_listener(settings: Settings, name: str) -> Config:
    refused = direct_response("nothing", {"prefix": "/"}, 404, NOT_FOUND_BODY)
    manager = http_manager(
        _listener_name(name),
        [*upstream_routes(settings, name), refused],
        stream_idle_timeout="3600s",
        # With Envoy's default, the calling listener would see a broken connection 1 s late.
        delayed_close_timeout="0.25s",
        # Envoy reports an unreachable upstream with its usual error. The route in front of this listener then retries
        # with another upstream.
        local_reply_config=local_replies(to_sidecar=True),
    )
    manager["route_config"]["virtual_hosts"][0]["response_headers_to_add"] = [overwritten(UPSTREAM_HEADER, name)]
    manager["access_log"] = [failed_tries(name, settings.timeouts.head)]
    return listener(_listener_name(name), None, manager)
