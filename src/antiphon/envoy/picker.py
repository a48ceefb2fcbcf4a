"""Generates the configuration for an inference scheduler's endpoint picker, which chooses the server of each model
call.

Lives here: which upstream has a picker, the retries of routes, and the clusters. Not here: the listener with the
picker's filter, and its failures (`picker_listener.py`); the routes to the upstream (`routes.py`); TLS (`clusters.py`).

The picker's filter (ext_proc, FULL_DUPLEX_STREAMED) is not in the listener of the sidecar's filter. It is behind the
cluster `model`, in a listener inside this Envoy. So all requests to the upstream use the picker, from the public
listener and from the model listener. Each retry picks again, so a dead server is not tried twice. And Envoy's response
code details distinguish its failures from those of the sidecar's filter.

Invariants: only the picker's answer decides where a request goes; Envoy removes the header from incoming requests.
Without an answer the request fails (fail closed). The picker has a timeout, and sees no credentials.
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
"""The header with the picked server: `IP:PORT`."""
PICKED = "model_picked"
"""The cluster that sends to the picked server."""
PICKER = "endpoint_picker"
"""The name of the picker's cluster, its listener and its filter."""


def is_picked(settings: Settings, upstream: str = "default") -> bool:
    """Whether a picker selects the servers of this upstream. Only `upstream` can have one, not `upstreams`."""
    return upstream == "default" and settings.envoy.endpoint_picker.address is not None


def asked_again(settings: Settings) -> Config:
    """The retry policy of a route to the picker's listener: if a server is unreachable, the picker selects another
    one."""
    gone = {"name": LOCAL_REPLY, "string_match": {"prefix": "unreachable:"}}
    return {"retry_on": "retriable-headers", "retriable_headers": [gone], "num_retries": settings.envoy.retries}


def stripped() -> list[Config]:
    """Removes the picker's header from clients' requests: otherwise a client could name any address that Envoy can
    reach."""
    return [{"remove": DESTINATION}]


def picked_clusters(name: str, servers: Config, picker: Config) -> list[Config]:
    """The upstream's cluster `name`, which leads to the picker's listener, and the two clusters behind that.

    `servers`: the fields of the upstream's own cluster. `picker`: those of the picker's (type and TLS).
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
    """The fields of the picker's cluster, except its address and TLS."""
    return {
        "connect_timeout": "1s",
        # No HTTP/2 pings: a gRPC server in Go closes the connection of a client that sends more than one in five
        # minutes.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
        },
        **http_options(explicit_http_config={"http2_protocol_options": {}}),
    }


def picker_place(picker: EndpointPickerSettings) -> tuple[str, int]:
    """The picker's host and port."""
    return parse_address(picker.address or "")
