"""Generates the configuration for an inference scheduler's endpoint picker, which chooses the server of each model
call.

This module finds out which upstream has a picker, and generates the retry policy of its routes and its clusters.
`picker_listener.py` generates the listener with the picker's filter and handles the picker's failures. `routes.py`
generates the routes to the upstream, and `clusters.py` configures TLS.

The picker's filter (ext_proc, FULL_DUPLEX_STREAMED) is not in the listener of the sidecar's filter. The picker's filter
is in an internal listener of the same Envoy, behind the cluster `model`. So all requests to the upstream use the
picker, whether they come from the public listener or from the model listener. Each retry asks the picker again, so a
dead server is not tried twice. Envoy's response code details distinguish the picker's failures from failures of the
sidecar's filter.

Invariants: only the picker's answer decides where a request goes; Envoy removes the picker's header from incoming
requests. If the picker does not answer, the request fails. The picker has a timeout, and Envoy sends no credentials to
the picker.
"""

from __future__ import annotations

from antiphon.config.processes import EndpointPickerSettings
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.messages import (
    Config,
    cluster,
    http_options,
    internal_address,
    internal_http_options,
    shaped_cluster,
)
from antiphon.types.transport import LOCAL_REPLY

DESTINATION = "x-gateway-destination-endpoint"
"""The header with the picker's answer: the picked server, as `IP:PORT`."""
PICKED = "model_picked"
"""The name of the cluster that sends a request to the picked server."""
PICKER = "endpoint_picker"
"""The name of three objects: the picker's cluster, its listener and its filter."""


def is_picked(settings: Settings, upstream: str = "default") -> bool:
    """Return whether a picker selects the servers of this upstream. Only the default upstream (`upstream`) can have a
    picker."""
    return upstream == "default" and settings.envoy.endpoint_picker.address is not None


def asked_again(settings: Settings) -> Config:
    """Build the retry policy of a route to the picker's listener. If a server is unreachable, Envoy retries the request
    and the picker selects another server."""
    gone = {"name": LOCAL_REPLY, "string_match": {"prefix": "unreachable:"}}
    return {"retry_on": "retriable-headers", "retriable_headers": [gone], "num_retries": settings.envoy.retries}


def stripped() -> list[Config]:
    """Return the mutation that removes the picker's header from clients' requests. With this header a client could name
    any address that Envoy can reach."""
    return [{"remove": DESTINATION}]


def picked_clusters(name: str, servers: Config, picker: Config) -> list[Config]:
    """Return three clusters: the upstream's cluster `name`, which leads to the picker's listener, the cluster of picked
    servers, and the picker's cluster.

    `servers` has the fields of the upstream's cluster. `picker` is the picker's complete cluster.
    """
    chosen = shaped_cluster(PICKED, [], retries=100, **servers)
    del chosen["load_assignment"]
    chosen |= {
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
    }
    return [cluster(name, [internal_address(PICKER)], type="STATIC", **internal_http_options()), chosen, picker]


def picker_fields() -> Config:
    """Return the fields of the picker's cluster, except its address and TLS."""
    return {
        "connect_timeout": "1s",
        # Envoy sends no HTTP/2 pings, because a gRPC server in Go closes the connection of a client that sends more
        # than one ping in five minutes.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
        },
        **http_options(explicit_http_config={"http2_protocol_options": {}}),
    }


def picker_place(picker: EndpointPickerSettings) -> tuple[str, int]:
    """Return the picker's host and port."""
    return parse_address(picker.address or "")
