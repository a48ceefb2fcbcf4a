"""Generates failover and balancing among several upstreams of one route.

Lives here: the clusters that choose among upstreams (by order or by weight), and the listeners inside Envoy that stand
for one upstream each. Not here: when another one is asked (`routes.py`), the upstreams' own clusters (`clusters.py`).

Envoy rewrites path, host and credentials by the route, before any cluster has chosen an endpoint, and a retry sends the
same again: an aggregate cluster would send one upstream's key to another. So the endpoints to choose from are listeners
inside this Envoy, and each has routes that make the request its upstream's own.

Invariant: what goes to an upstream was made by a route of that upstream alone.
"""

from __future__ import annotations

from antiphon.config.settings import Settings
from antiphon.config.upstreams import UpstreamGroup
from antiphon.envoy.failure_lines import failed_tries
from antiphon.envoy.local_replies import local_replies
from antiphon.envoy.messages import (
    Config,
    direct_response,
    error_body,
    http_manager,
    internal_address,
    internal_http_options,
    listener,
    overwritten,
    shaped_cluster,
    typed,
)
from antiphon.envoy.picker import is_picked
from antiphon.envoy.routes import NOT_FOUND, group_cluster, upstream_routes
from antiphon.types.transport import UPSTREAM_HEADER


def bootstrap_extensions(settings: Settings) -> list[Config]:
    """What Envoy needs for listeners inside it."""
    if not (settings.groups or is_picked(settings)):
        return []
    kind = typed("bootstrap.internal_listener.v3.InternalListener")
    return [{"name": "envoy.bootstrap.internal_listener", "typed_config": kind}]


def group_clusters(settings: Settings) -> list[Config]:
    """One for each list of upstreams."""
    return [_group_cluster(group) for group in settings.groups.values()]


def upstream_listeners(settings: Settings) -> list[Config]:
    """One for each upstream that stands in a list."""
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
        # While one is dead each of the other's requests is a retry, and counts until its stream ends.
        retries=100_000,
        type="STATIC",
        lb_policy="ROUND_ROBIN",
        # Where none is well all are asked, and say why.
        common_lb_config={"healthy_panic_threshold": {"value": 1}},
        # One that cannot be reached is not asked first for a while: every request would wait for it. What a server says
        # of one request (500, 429) does not count.
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
    refused = direct_response("nothing", {"prefix": "/"}, 404, error_body(NOT_FOUND, "invalid_request_error", None))
    manager = http_manager(
        _listener_name(name),
        [*upstream_routes(settings, name), refused],
        stream_idle_timeout="3600s",
        # What breaks off is known in front 1 s late by default.
        delayed_close_timeout="0.25s",
        # What could not be reached is told as everywhere; in front of this it is a reason to ask another.
        local_reply_config=local_replies(to_sidecar=True),
    )
    manager["route_config"]["virtual_hosts"][0]["response_headers_to_add"] = [overwritten(UPSTREAM_HEADER, name)]
    manager["access_log"] = [failed_tries(name, settings.timeouts.head)]
    return listener(_listener_name(name), None, manager)
