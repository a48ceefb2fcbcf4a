"""Generates the configuration for an inference scheduler's endpoint picker, which chooses the server of each model
call.

Lives here: which upstream is picked, how routes ask again, and the clusters. Not here: the listener where the picker's
filter stands, and its failures (`picker_listener.py`); which requests lead to the upstream (`routes.py`); TLS
(`clusters.py`).

The picker's filter (ext_proc, FULL_DUPLEX_STREAMED) is behind the cluster `model`, in a listener inside this Envoy, not
beside the sidecar's filter: so everything that leads to the upstream is picked the same way, from the public listener
and from the model door; a try is a pick, so that a server that has gone is not asked twice; and what goes wrong there
is never mistaken for the sidecar's own failure, which Envoy tells by the same details.

Invariants: only the picker's answer says where a request goes, the header is removed from whatever arrives; without an
answer it goes nowhere (closed: there is no other way to a server); the picker has an end of its time; it sees no
credentials.
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
"""By this header the picker says which server it is: `IP:PORT`."""
PICKED = "model_picked"
"""The cluster of whatever server the picker chose."""
PICKER = "endpoint_picker"
"""The name of the picker's cluster, its listener and its filter."""


def is_picked(settings: Settings, upstream: str = "default") -> bool:
    """Whether a picker chooses the servers of this upstream: it does so for `upstream`, for none of `upstreams`."""
    return upstream == "default" and settings.envoy.endpoint_picker.address is not None


def asked_again(settings: Settings) -> Config:
    """The retry policy of a route to the picker's listener: where the server cannot be reached, another is picked."""
    gone = {"name": LOCAL_REPLY, "string_match": {"prefix": "unreachable:"}}
    return {"retry_on": "retriable-headers", "retriable_headers": [gone], "num_retries": settings.envoy.retries}


def stripped() -> list[Config]:
    """What clients cannot say: a server of their own choice would be any address that Envoy reaches."""
    return [{"remove": DESTINATION}]


def picked_clusters(name: str, servers: Config, picker: Config) -> list[Config]:
    """The upstream's cluster `name`, which leads to the picker's listener, and the two behind that.

    `servers`: fields of the upstream's own cluster, `picker`: those of the picker's (type and TLS).
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
    """Fields of the picker's cluster beside its address and TLS."""
    return {
        "connect_timeout": "1s",
        # No HTTP/2 pings: a gRPC server of Go hangs up on whoever sends more than one in five minutes.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
        },
        **http_options(explicit_http_config={"http2_protocol_options": {}}),
    }


def picker_place(picker: EndpointPickerSettings) -> tuple[str, int]:
    """Its host and port."""
    return parse_address(picker.address or "")
