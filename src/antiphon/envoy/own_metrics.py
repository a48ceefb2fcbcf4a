"""Generates the listener for Envoy's own metrics and liveness check (`envoy.metrics`).

Lives here: its listener, and the cluster that leads from it to the admin interface. Not here: Antiphon's metrics, the
public listener (`bootstrap.py`).

Invariant: this port serves two paths and nothing else of the admin interface. Neither path needs a sidecar. The port
stays open while the public listener drains.
"""

from __future__ import annotations

from antiphon.config.settings import Settings
from antiphon.envoy.messages import Config, address, cluster, http_manager, listener

_ADMIN = "admin"


def metrics_listener(settings: Settings) -> list[Config]:
    """The listener, if `envoy.metrics` is set."""
    if settings.envoy.metrics is None:
        return []
    routes = [
        {"name": "live", "match": {"path": "/live"}, "direct_response": {"status": 200}},
        {"name": "metrics", "match": {"path": "/stats/prometheus"}, "route": {"cluster": _ADMIN, "timeout": "10s"}},
    ]
    manager = http_manager(
        "metrics",
        routes,
        request_headers_timeout="10s",
        request_timeout="10s",
        common_http_protocol_options={"idle_timeout": "60s"},
    )
    return [listener("metrics", settings.envoy.metrics, manager)]


def metrics_cluster(settings: Settings) -> list[Config]:
    """Envoy's admin interface as a cluster, if `envoy.metrics` is set."""
    if settings.envoy.metrics is None:
        return []
    return [cluster(_ADMIN, [address(settings.place(settings.envoy.admin))], type="STATIC")]
